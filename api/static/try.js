// The box to try a prompt: sends it as any client would, and shows the answer as it streams.

import { byId, element, keyed, setText } from "./dom.js";
import { digits, duration, plural } from "./format.js";
import { headers } from "./session_key.js";

const MAX_CHARS = 200_000;

// The values of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

export class TryBox {
  #answer = byId("answer");
  #note = byId("try-note");
  #running = null; // an AbortController

  constructor() {
    byId("try-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running === null) this.#send();
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("try-form").requestSubmit();
    });
  }

  showModels(names) {
    keyed(
      byId("model"),
      names,
      (name) => name,
      (name) => element("option", { value: name }, name),
      () => {},
    );
    byId("model-field").hidden = names.length < 2;
  }

  async #send() {
    const running = new AbortController();
    this.#setRunning(running);
    this.#answer.textContent = "";
    setText(this.#note, "waiting for the first token");
    const watch = { began: performance.now(), first: null, tokens: 0, finish: null };
    try {
      await this.#stream(running.signal, watch);
      setText(this.#note, summary(watch, watch.finish === "length" ? "reached its limit" : "ended"));
    } catch (error) {
      if (error.name === "AbortError") setText(this.#note, summary(watch, "stopped"));
      else setText(this.#note, error.message);
    } finally {
      this.#setRunning(null);
    }
  }

  async #stream(signal, watch) {
    const answer = await fetch("/v1/completions", {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify({
        model: byId("model").value,
        prompt: byId("prompt").value,
        max_tokens: byId("max-tokens").valueAsNumber,
        stream: true,
        stream_options: { include_usage: true, continuous_usage_stats: true },
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      this.#take(event, watch);
    }
  }

  #take(event, watch) {
    watch.tokens = event.usage?.completion_tokens ?? watch.tokens;
    const [choice] = event.choices;
    if (choice === undefined) return;
    watch.first ??= performance.now();
    watch.finish = choice.finish_reason ?? watch.finish;
    if (this.#answer.textContent.length < MAX_CHARS) this.#answer.append(choice.text);
    this.#answer.scrollTop = this.#answer.scrollHeight;
    setText(this.#note, summary(watch, "streaming"));
  }

  #setRunning(running) {
    this.#running = running;
    byId("send").disabled = running !== null;
    byId("stop").disabled = running === null;
    this.#answer.setAttribute("aria-busy", String(running !== null)); // read out when it is whole
  }
}

function summary(watch, state) {
  if (watch.first === null) return state;
  const seconds = (performance.now() - watch.first) / 1000;
  const speed = watch.tokens > 1 && seconds > 0 ? `, ${digits((watch.tokens - 1) / seconds)} tokens/s` : "";
  const first = duration((watch.first - watch.began) / 1000);
  return `${state}: first token after ${first}, ${plural(watch.tokens, "token")}${speed}`;
}
