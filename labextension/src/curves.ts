/** A metric's course in a cell's output. */
export interface ICurve {
  name: string;
  x: number[];
  y: (number | null)[];
}

/** The curves of an output; those that are none are left out: a notebook may say anything. */
export function curvesOf(data: unknown): ICurve[] {
  const { curves } = (data ?? {}) as { curves?: unknown };
  return (Array.isArray(curves) ? curves : []).filter(isCurve);
}

/** A selector for where in a run's live card its curves are drawn; empty for none. */
export function placeOf(data: unknown): string {
  const { run } = (data ?? {}) as { run?: unknown };
  return typeof run === 'string' && run
    ? `.aios-card .aios-place[data-run=${JSON.stringify(run)}]`
    : '';
}

function isCurve(some: unknown): some is ICurve {
  const { name, x, y } = (some ?? {}) as Partial<Record<keyof ICurve, unknown>>;
  return (
    typeof name === 'string' &&
    Array.isArray(x) &&
    Array.isArray(y) &&
    x.length === y.length &&
    x.every(value => typeof value === 'number') &&
    y.every(value => value === null || typeof value === 'number')
  );
}
