// The API key of this tab. It is kept in sessionStorage, so it ends with the tab.

const NAME = "headrace.key";
const watchers = new Set();

export function key() {
  return sessionStorage.getItem(NAME);
}

export function signIn(value) {
  sessionStorage.setItem(NAME, value);
  watchers.forEach((watch) => watch());
}

export function signOut() {
  sessionStorage.removeItem(NAME);
  watchers.forEach((watch) => watch());
}

export function onChange(watch) {
  watchers.add(watch);
  return () => watchers.delete(watch);
}
