// The part of the page's address that names the model whose panel is open: `#model=NAME`.

export const hashOf = (model) => `#model=${encodeURIComponent(model)}`;

/** The model that the address names; null if it names none. */
export function modelInAddress() {
  const [, text] = /^#model=([^&]+)/.exec(location.hash) ?? [];
  if (text === undefined) return null;
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a "%" that encodes nothing, in an address that was typed
  }
}
