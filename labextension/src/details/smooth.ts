/** The moving mean of values, in which older ones count less and less; gaps stay gaps. */
export function smoothed(
  values: readonly (number | null)[],
  weight: number
): (number | null)[] {
  let mean = 0;
  let count = 0;
  return values.map(value => {
    if (value === null || !Number.isFinite(value)) {
      return null;
    }
    mean = weight * mean + (1 - weight) * value;
    count++;
    // The mean starts at 0, of which the first values have too much.
    return mean / (1 - weight ** count);
  });
}
