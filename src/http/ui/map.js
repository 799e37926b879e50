// The map: regions at their cities, their instances as dots, lines from this instance with the distance, and calls that move
// along them. What it shows stands in the table below it too.

import { element, keyed, ms, say } from "./dom.js";
import { LAND, PLACES, city } from "./places.js";

/** The part of the plane that is shown: all longitudes, and latitudes from 76 down to −57. */
const [WIDTH, HEIGHT, NORTH] = [288, 133, 76];
/** Dots of one region; what is more is a number. */
const DOTS = 8;
/** The room of a region that is on no map, and the most points that move at once. */
const [TRAY, SPARKS] = [110, 80];

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class WorldMap {
  #parent;
  #choose;
  #svg;
  #land;
  #arcs;
  #distances;
  #places;
  #flight;
  #shown;
  #sparks = new Set();
  #points = new Map();

  constructor(parent, choose) {
    this.#parent = parent;
    this.#choose = choose;
    this.#land = element("svg:path", { d: LAND, class: "land" });
    const layer = () => element("svg:g");
    [this.#arcs, this.#distances, this.#flight, this.#places] = [layer(), layer(), layer(), layer()];
    this.#svg = element("svg:svg", { role: "group", "aria-labelledby": "map-title" },
      this.#land, this.#arcs, this.#flight, this.#distances, this.#places);
    parent.append(this.#svg);
    new ResizeObserver(() => this.#shown && this.show(this.#shown)).observe(parent);
  }

  /** Shows regions: `{ region, local, instances, rtt, p50, count }` each. */
  show(regions) {
    this.#shown = regions;
    const width = this.#parent.clientWidth;
    const scale = width / WIDTH;
    const tray = regions.filter(({ region }) => !PLACES[region]);
    const columns = Math.max(1, Math.floor((width - 16) / TRAY));
    const height = HEIGHT * scale + Math.ceil(tray.length / columns) * 34;
    this.#svg.setAttribute("height", height);
    // The outline is in tenths, from 84 down.
    this.#land.setAttribute("transform", `translate(0 ${(NORTH - 84) * scale}) scale(${scale / 10})`);
    this.#points = new Map(regions.map(({ region }) => [region, this.#pointOf(region, scale)]));
    tray.forEach(({ region }, at) => this.#points.set(region, {
      x: 24 + (at % columns) * TRAY, y: HEIGHT * scale + 14 + Math.floor(at / columns) * 34,
    }));
    const here = regions.find(({ local }) => local);
    const others = regions.filter((it) => here && it !== here && it.instances.length > 0);
    keyed(this.#arcs, others, ({ region }) => region, () => element("svg:path"), (path, it) => {
      path.setAttribute("d", this.#arc(here.region, it.region).d);
      const lost = it.instances.every(({ state }) => state !== "ready");
      path.setAttribute("class", `arc${lost ? " lost" : ""}${path.classList.contains("chosen") ? " chosen" : ""}`);
    });
    const taken = this.#showPlaces(regions, width);
    keyed(this.#distances, others.filter(({ rtt }) => rtt !== null), ({ region }) => region,
      () => element("svg:text", { class: "distance", "aria-hidden": "true" }), (text, it) => {
        const point = freePoint(this.#arc(here.region, it.region), taken);
        text.setAttribute("x", point?.x ?? 0);
        text.setAttribute("y", (point?.y ?? 0) + 4);
        say(text, point ? ms(it.rtt) : "");
      });
  }

  #pointOf(region, scale) {
    const [, latitude, longitude] = PLACES[region] ?? ["", 0, 0];
    return { x: (longitude + 180) * 0.8 * scale, y: (NORTH - latitude) * scale };
  }

  #arc(from, to) {
    const [a, b] = [this.#points.get(from), this.#points.get(to)];
    const rise = Math.min(Math.hypot(b.x - a.x, b.y - a.y) * 0.22, 90);
    const [x, y] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
    const at = (t) => ({
      x: (1 - t) ** 2 * a.x + 2 * t * (1 - t) * x + t ** 2 * b.x,
      y: (1 - t) ** 2 * a.y + 2 * t * (1 - t) * (y - rise) + t ** 2 * b.y,
    });
    return { d: `M${a.x} ${a.y}Q${x} ${y - rise} ${b.x} ${b.y}`, at };
  }

  #showPlaces(regions, width) {
    const taken = [...this.#points.values()].map(({ x, y }) => ({ left: x - 9, right: x + 9, top: y - 9, bottom: y + 9 }));
    const make = ({ region }) => {
      const choose = () => this.#choose(region);
      return element("svg:g", {
        class: "place", tabindex: "0", role: "button", onclick: choose,
        onkeydown: (event) => ["Enter", " "].includes(event.key) && (event.preventDefault(), choose()),
      }, element("svg:circle", { class: "halo", r: 13 }), element("svg:g"),
      element("svg:text", { "aria-hidden": "true" }, element("svg:tspan", { class: "name" }), element("svg:tspan", { class: "about" })));
    };
    keyed(this.#places, regions, ({ region }) => region, make, (place, it) => {
      const { x, y } = this.#points.get(it.region);
      place.setAttribute("transform", `translate(${x} ${y})`);
      place.setAttribute("aria-label", summary(it));
      const [, dots, text] = place.children;
      showDots(dots, it.instances);
      const about = it.p50 === null ? "" : ` ${ms(it.p50)}`;
      say(text.firstChild, it.region);
      say(text.lastChild, about);
      const { dx, dy, anchor } = labelled(x, y, it.region.length * 8 + about.length * 6 + 4, width, taken);
      text.setAttribute("x", dx);
      text.setAttribute("y", dy);
      text.setAttribute("text-anchor", anchor);
    });
    return taken;
  }

  /** Moves a point to `region` for a call. */
  call(region, failed, took) {
    if (still.matches || document.hidden || this.#sparks.size >= SPARKS) return;
    const path = this.#arcs.kept?.get(region);
    const here = this.#points.get(region);
    if (!here) return;
    const node = element("svg:circle", { class: failed ? "spark bad" : "spark", r: 3.5, cx: here.x, cy: here.y });
    this.#flight.append(node);
    this.#sparks.add({ node, path, start: performance.now(), span: Math.min(Math.max(took * 2, 500), 1600) });
    if (this.#sparks.size === 1) requestAnimationFrame((now) => this.#move(now));
  }

  #move(now) {
    for (const spark of this.#sparks) {
      const part = (now - spark.start) / spark.span;
      if (part >= 1) {
        spark.node.remove();
        this.#sparks.delete(spark);
      } else if (spark.path?.isConnected) {
        // There and back, as the call and its answer.
        const way = 1 - Math.abs(1 - 2 * Math.max(part, 0));
        const { x, y } = spark.path.getPointAtLength(spark.path.getTotalLength() * way);
        spark.node.setAttribute("cx", x);
        spark.node.setAttribute("cy", y);
      } else {
        spark.node.setAttribute("r", 4 + 10 * part);
        spark.node.setAttribute("opacity", 1 - part);
      }
    }
    if (this.#sparks.size > 0) requestAnimationFrame((next) => this.#move(next));
  }

  /** Draws the ways to these regions, and no other, as those of the last call. */
  draw(regions) {
    for (const [region, path] of this.#arcs.kept ?? []) path.classList.toggle("chosen", regions.includes(region));
  }
}

function summary({ region, instances, p50, rtt }) {
  const states = ["ready", "suspect", "draining"].map((state) => {
    const count = instances.filter((it) => it.state === state).length;
    return count > 0 ? `${count} ${state}` : "";
  });
  const parts = [city(region), states.filter(Boolean).join(", ") || "no instance"];
  if (rtt !== null) parts.push(`round trip ${ms(rtt)}`);
  // Begins with the text that is seen.
  return `${region}${p50 === null ? "" : ` ${ms(p50)} median`}: ${parts.filter(Boolean).join("; ")}. Explain`;
}

function showDots(parent, instances) {
  const shown = instances.slice(0, DOTS);
  const radius = shown.length > 1 ? 5 + shown.length * 0.6 : 0;
  keyed(parent, shown, ({ instance, address }) => `${instance} ${address}`, () => element("svg:g", {},
    element("svg:circle", { r: 4.5 })), (dot, it) => {
    const angle = (shown.indexOf(it) / shown.length) * 2 * Math.PI - Math.PI / 2;
    dot.setAttribute("transform", `translate(${radius * Math.cos(angle)} ${radius * Math.sin(angle)})`);
    dot.firstChild.setAttribute("class", `dot ${it.state}`);
    if (it.local && !dot.lastChild.classList.contains("ring")) dot.append(element("svg:circle", { class: "ring", r: 6.5 }));
  });
}

const apart = (one, other) =>
  one.left >= other.right || one.right <= other.left || one.top >= other.bottom || one.bottom <= other.top;

/** A point of an arc at which a distance can be read, if there is one. */
function freePoint({ at }, taken) {
  const box = ({ x, y }) => ({ left: x - 24, right: x + 24, top: y - 8, bottom: y + 8 });
  const points = [0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78].map(at);
  const found = points.find((point) => taken.every((it) => apart(box(point), it)));
  if (found) taken.push(box(found));
  return found;
}

/** Where a label of this width stands by a place, beside what is taken already. */
function labelled(x, y, width, limit, taken) {
  const tries = [[16, 4], [16, 18], [16, -10], [-16, 4], [-16, 18], [-16, -10], [16, 32], [-16, 32]];
  const box = ([dx, dy]) => {
    const left = dx > 0 ? x + dx : x + dx - width;
    return { left, right: left + width, top: y + dy - 11, bottom: y + dy + 3 };
  };
  const fits = (one) => {
    const { left, right } = box(one);
    return left >= 0 && right <= limit && taken.every((it) => apart(box(one), it));
  };
  const found = tries.find(fits) ?? (x + width + 16 > limit ? tries[3] : tries[0]);
  taken.push(box(found));
  return { dx: found[0], dy: found[1], anchor: found[0] > 0 ? "start" : "end" };
}
