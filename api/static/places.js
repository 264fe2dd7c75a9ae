// Where memory is, out of the server's answer: devices that serve, devices that lend, the host. Sizes in bytes.

// `of` is the model whose pages they are, where there could be several.
const part = (kind, bytes, of = "") => ({ kind, of, bytes: Math.max(0, bytes) });

function poolOf(state, model, device) {
  const size = model.page_bytes;
  const lender = state.lenders.find((each) => each.name === `${model.name}@${device.name}`);
  const lent = lender === undefined ? 0 : lender.num_segments - lender.own_segments - lender.on_offer;
  const offered = lender === undefined ? 0 : lender.on_offer;
  return {
    label: model.name,
    parts: [
      part("running", device.pages_running * size),
      part("waiting", (device.pages_idle - device.pages_clean) * size),
      part("clean", device.pages_clean * size),
      part("lent", lent * (lender?.segment_bytes ?? 0)),
      part("free", device.pages_free * size + offered * (lender?.segment_bytes ?? 0)),
    ],
  };
}

export const byName = (a, b) => a.localeCompare(b, "en", { numeric: true });

function serving(state) {
  const places = new Map();
  for (const model of state.models) {
    for (const device of model.devices) {
      if (!places.has(device.name)) {
        places.set(device.name, { name: device.name, kind: "device", isUp: true, running: 0, batch: 0, pools: [] });
      }
      const place = places.get(device.name);
      place.isUp &&= device.is_up;
      place.running += device.num_running;
      place.batch += device.max_batch;
      place.pools.push(poolOf(state, model, device));
    }
  }
  return [...places.values()].sort((a, b) => byName(a.name, b.name));
}

// A part for each model that keeps mirrors there.
function mirrorsAt(state, place) {
  return state.models.map((model) => {
    const pages = model.tiers.filter((tier) => tier.place === place).reduce((sum, tier) => sum + tier.pages_used, 0);
    return part("mirror", pages * model.page_bytes, state.models.length > 1 ? model.name : "");
  });
}

const sizeOf = (parts) => parts.reduce((sum, each) => sum + each.bytes, 0);

function lending(state) {
  const idle = state.lenders.filter((lender) => lender.own_segments === null);
  idle.sort((a, b) => byName(a.device, b.device));
  return idle.map((lender) => {
    const total = lender.num_segments * lender.segment_bytes;
    const mirrors = mirrorsAt(state, lender.device);
    const used = sizeOf(mirrors);
    const leased = Object.values(lender.leased).reduce((sum, count) => sum + count, 0) * lender.segment_bytes;
    const parts = [...mirrors, part("leased", leased - used), part("free", total - Math.max(leased, used))];
    return { name: lender.device, kind: "lender", recalled: lender.recalled, pools: [{ label: "", parts }] };
  });
}

function host(state) {
  const total = state.models.reduce((sum, model) => {
    const tier = model.tiers.find((each) => each.place === "host");
    return sum + (tier?.pages ?? 0) * model.page_bytes;
  }, 0);
  if (total === 0) return [];
  const mirrors = mirrorsAt(state, "host");
  const parts = [...mirrors, part("free", total - sizeOf(mirrors))];
  return [{ name: "host", kind: "host", pools: [{ label: "", parts }] }];
}

// `near` runs prompts, `far` keeps what does not run.
export function placesOf(state) {
  return { near: serving(state), far: [...lending(state), ...host(state)] };
}

// Every direction in which something was moved, with its speeds in bytes per second.
export function linksOf(store) {
  const past = store.before(2000).moved;
  const seconds = (store.time - store.before(2000).time) / 1000;
  const moved = [...store.last.moved].sort(([a], [b]) => byName(a, b));
  return moved.map(([key, { bytes, busy }]) => {
    const [src, dst] = key.split("\n");
    const before = past.get(key) ?? { bytes: 0, busy: 0 };
    const now = Math.max(0, bytes - before.bytes);
    const moving = busy - before.busy;
    return {
      src,
      dst,
      total: bytes,
      rate: seconds > 0 ? now / seconds : 0,
      speed: moving > 0 ? (now / moving) * 1000 : busy > 0 ? (bytes / busy) * 1000 : null,
    };
  });
}
