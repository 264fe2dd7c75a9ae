// The page: asks the feed, keeps the store, and lets every picture draw what it shows.

import { byId, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { MemoryMap } from "./memory.js";
import { updateLegend, updateQueue } from "./queue.js";
import { key, setKey } from "./session_key.js";
import { connectSlicesTable, updateSlicesTable } from "./slices_table.js";
import { Store } from "./store.js";
import { Tiles } from "./tiles.js";
import { Timeline } from "./timeline.js";
import { connectControls } from "./timeline_controls.js";
import { TryBox } from "./try.js";

const store = new Store();
const timeline = new Timeline(store);
const tiles = new Tiles(byId("tiles"), store);
const memory = new MemoryMap(store);
const tryBox = new TryBox();
const feed = new Feed(onState, onProblem);

function onState(state) {
  store.apply(state);
  const loading = state.models.filter((model) => model.stage !== null);
  const ready = state.models.filter((model) => model.stage === null);
  setStatus("live", loading.length ? `${loading[0].name}: ${loading[0].stage}` : "live");
  setText(byId("models"), ready.map((model) => model.name).join(", "));
  byId("key-panel").hidden = true;
  byId("forget").hidden = key() === null;
  tiles.update();
  timeline.update();
  memory.update();
  updateQueue(store);
  updateLegend(store);
  updateSlicesTable(store);
  tryBox.showModels(ready.map((model) => model.name));
}

function onProblem(status, message) {
  if (status === 401) {
    byId("key-panel").hidden = false;
    setText(byId("key-note"), key() === null ? "" : message);
  }
  setStatus(status === 401 ? "locked" : "lost", status === 401 ? "needs a key" : message);
}

function setStatus(state, text) {
  const status = byId("status");
  status.dataset.state = state;
  setText(status, text);
}

function useKey(value) {
  setKey(value);
  store.clear();
  timeline.clear();
  feed.restart();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
});
byId("forget").addEventListener("click", () => {
  byId("forget").hidden = true;
  useKey(null);
});

connectControls(timeline, store);
connectSlicesTable(store);
feed.start();
