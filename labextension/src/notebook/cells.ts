/** A cell as far as it matters for which run it has started. */
export interface ICell {
  source: string;
  count: number | null;
  running: boolean;
}

const ON_RANKS = /^\s*%%aios\s+(train|run)\b/;
const LOADS = /^\s*%load_ext\s+aios_jupyter\b/m;

/** The source with the magic that runs it on every leased device; null when it has one already. */
export function onRanks(source: string): string | null {
  return /^\s*%%/.test(source) ? null : `%%aios train\n${source}`;
}

/** Whether a notebook loads the magics by itself: by its kernel, or in one of its cells. */
export function loadsMagics(kernel: string, sources: readonly string[]): boolean {
  return kernel.startsWith('aios') || sources.some(source => LOADS.test(source));
}

/** The place of the cell that has started a run called `name`, -1 when nothing tells. */
export function cellOf(name: string, cells: readonly ICell[]): number {
  const [, count] = /^cell (\d+)$/.exec(name) ?? [];
  const counted = cells.findIndex(cell => count && cell.count === Number(count));
  if (counted >= 0) {
    return counted;
  }
  const magic = cells.map(cell => ON_RANKS.test(cell.source));
  const running = cells.findIndex((cell, index) => cell.running && magic[index]);
  return running >= 0 ? running : magic.lastIndexOf(true);
}

/** How many devices, for how long: what `%aios alloc` takes. */
export interface IWish {
  devices: string;
  time: string;
}

/** The line that leases them; null when the wish is not one. */
export function allocLine(wish: IWish): string | null {
  const devices = wish.devices.trim();
  const time = wish.time.replace(/\s+/g, '');
  const fine =
    /^[1-9]\d*(:[1-9]\d*)?$/.test(devices) && /^(\d+(\.\d+)?[smhd]?)?$/.test(time);
  return fine
    ? `%aios alloc --devices ${devices}${time === '' ? '' : ` --time ${time}`}`
    : null;
}
