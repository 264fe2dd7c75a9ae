// The timeline as a file for ui.perfetto.dev and chrome://tracing, in the trace event format: a process for each
// device, a thread for each place in its batch, complete events (ph X) with times in microseconds.

const MICROSECONDS = 1000; // in a millisecond

// `slices` and `samples` as the store has them; a slice in force lasts until `now`.
export function traceOf(slices, samples, now) {
  const begin = Math.min(...slices.map((slice) => slice.start), ...samples.map((sample) => sample.time));
  const at = (time) => Math.round((time - begin) * MICROSECONDS);
  const processes = new Map();
  const events = [];
  for (const slice of slices) {
    const name = `${slice.device} (${slice.model})`;
    if (!processes.has(name)) processes.set(name, { pid: processes.size + 1, threads: new Set() });
    const { pid, threads } = processes.get(name);
    const tid = slice.slot + 1;
    threads.add(tid);
    const place = { ph: "X", pid, tid };
    events.push({ ...place, ...named(slice), ts: at(slice.start), dur: at(slice.end ?? now) - at(slice.start) });
    if (slice.firstToken !== null) {
      const dur = at(slice.firstToken) - at(slice.start);
      events.push({ ...place, name: "prefill", cat: "prefill", ts: at(slice.start), dur });
    }
  }
  events.push(...counters(samples, at));
  return { traceEvents: [...metadata(processes), ...events], displayTimeUnit: "ms" };
}

function named(slice) {
  const { model, tenant, prompt, prefilled, sampled, fate } = slice;
  const name = prompt === 0 ? "another tenant" : `prompt ${prompt}`;
  const args = { model, tenant, prompt, prefilled, sampled, end: fate ?? "in force" };
  return { name, cat: tenant || "others", args };
}

function counters(samples, at) {
  return samples.map((sample) => ({
    ph: "C",
    pid: 0,
    name: "prompts",
    ts: at(sample.time),
    args: { running: sample.running, waiting: sample.waiting },
  }));
}

function metadata(processes) {
  const events = [{ ph: "M", pid: 0, name: "process_name", args: { name: "queue" } }];
  for (const [name, { pid, threads }] of processes) {
    events.push({ ph: "M", pid, name: "process_name", args: { name } });
    for (const tid of [...threads].sort((a, b) => a - b)) {
      events.push({ ph: "M", pid, tid, name: "thread_name", args: { name: `place ${tid}` } });
      events.push({ ph: "M", pid, tid, name: "thread_sort_index", args: { sort_index: tid } });
    }
  }
  return events;
}

export function save(store) {
  const trace = traceOf([...store.ended, ...store.inForce], store.samples, store.time);
  const url = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `fairslice-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
