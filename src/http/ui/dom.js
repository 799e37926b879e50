// Elements, made and kept up to date without a framework. Text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element `tag`, or one of SVG where it begins with `svg:`, with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

/** Sets a text, where it is another one. */
export function say(target, text) {
  const node = typeof target === "string" ? byId(target) : target;
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`, in order: one that stays is the same element, so that focus and selection
 * stay with it.
 */
export function keyed(parent, items, key, make, update) {
  const before = (parent.kept ??= new Map());
  const kept = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const name = key(item);
    const node = before.get(name) ?? make(item);
    update(node, item);
    kept.set(name, node);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const [name, node] of before) if (kept.get(name) !== node) node.remove();
  parent.kept = kept;
}

export const ms = (value) => {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
};

export const ago = (value) => {
  if (value === null || value === undefined) return "–";
  return value < 60_000 ? `${(value / 1000).toFixed(1)} s ago` : `${Math.round(value / 60_000)} min ago`;
};
