// Buttons, pointer and keys of the timeline.

import { byId, setText } from "./dom.js";
import { save } from "./trace.js";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

export function connectControls(timeline, store) {
  const canvas = byId("timeline");
  const pause = byId("pause");
  const span = byId("window");

  const setPaused = (isPaused) => {
    timeline.pause(isPaused);
    showPaused();
  };
  const showPaused = () => {
    pause.setAttribute("aria-pressed", String(timeline.isPaused));
    setText(pause, timeline.isPaused ? "Go on" : "Pause");
  };

  pause.addEventListener("click", () => setPaused(!timeline.isPaused));
  byId("save").addEventListener("click", () => save(store));
  byId("rows").addEventListener("change", (event) => {
    timeline.mode = event.target.value;
    timeline.draw();
  });
  span.addEventListener("change", () => {
    timeline.span = Number(span.value) * 1000;
    timeline.draw();
  });

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in KEYS) {
      if (!timeline.isPaused) setPaused(true); // what moves cannot be walked on
      timeline.step(KEYS[event.key]);
    } else if (event.key === " ") setPaused(!timeline.isPaused);
    else if (event.key === "+" || event.key === "=") timeline.zoom(1 / 1.5);
    else if (event.key === "-") timeline.zoom(1.5);
    else if (event.key === "Escape") timeline.select(null);
    else return;
    event.preventDefault();
  });

  let dragged = null; // x of the pointer at the last movement
  canvas.addEventListener("pointerdown", (event) => {
    dragged = event.offsetX;
    timeline.pointAt(event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged === null || event.buttons === 0) {
      timeline.pointAt(event.offsetX, event.offsetY);
      return;
    }
    canvas.setPointerCapture(event.pointerId);
    timeline.pan((dragged - event.offsetX) * timeline.millisecondsPerPixel());
    dragged = event.offsetX;
    showPaused();
  });
  canvas.addEventListener("pointerup", () => {
    dragged = null;
  });
  canvas.addEventListener("pointerleave", () => {
    if (!timeline.isPaused) timeline.select(null);
  });
}
