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
