// The API key, if the server asks for one. It stays in this tab's session storage.

const NAME = "fairslice-key";

let memory = null;

export function key() {
  try {
    return sessionStorage.getItem(NAME) ?? memory;
  } catch {
    return memory;
  }
}

export function setKey(value) {
  memory = value;
  try {
    if (value === null) sessionStorage.removeItem(NAME);
    else sessionStorage.setItem(NAME, value);
  } catch {
    // storage is switched off: the key lasts until the page is left
  }
}

export const headers = () => (key() === null ? {} : { authorization: `Bearer ${key()}` });
