// Asks the server what happens now, twice a second while the page can be seen, and not at all while it cannot.

import { headers } from "./session_key.js";

export const PERIOD_MS = 500;
const MAX_WAIT_MS = 8000;

export class Feed {
  #cursor = "0";
  #wait = PERIOD_MS;
  #timer = null;
  #turn = 0; // of asking: an answer that is not to the latest question comes too late
  #onState;
  #onProblem;

  // `onState(state)` gets every answer; `onProblem(status, message)` what came instead, status 0 without a server.
  constructor(onState, onProblem) {
    this.#onState = onState;
    this.#onProblem = onProblem;
    document.addEventListener("visibilitychange", () => this.#plan(0));
  }

  start() {
    this.#plan(0);
  }

  // From the beginning: another key may see more.
  restart() {
    this.#cursor = "0";
    this.#wait = PERIOD_MS;
    this.#turn += 1;
    this.#plan(0);
  }

  #plan(delay) {
    clearTimeout(this.#timer);
    if (!document.hidden && delay < Infinity) this.#timer = setTimeout(() => this.#ask(), delay);
  }

  async #ask() {
    const asked = performance.now();
    this.#turn += 1;
    const turn = this.#turn;
    const { status, body } = await this.#fetched();
    if (turn !== this.#turn) return;
    try {
      if (status === 200) this.#take(body);
      else this.#fail(status, body.error.message);
    } finally {
      this.#plan(Math.max(0, this.#wait - (performance.now() - asked)));
    }
  }

  async #fetched() {
    try {
      const answer = await fetch(`/live/state?cursor=${this.#cursor}`, { headers: headers() });
      return { status: answer.status, body: await answer.json() };
    } catch {
      return { status: 0, body: { error: { message: "The server does not answer" } } }; // or what is between us
    }
  }

  #take(state) {
    this.#cursor = state.cursor;
    this.#wait = PERIOD_MS;
    this.#onState(state);
  }

  #fail(status, message) {
    this.#wait = status === 401 ? Infinity : Math.min(2 * this.#wait, MAX_WAIT_MS); // a key has to come first
    this.#onProblem(status, message);
  }
}
