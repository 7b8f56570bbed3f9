import * as React from 'react';

/** A number that grows by one with each frame: what is drawn at once is no long task then. */
export function useGrowing(end: number): number {
  const [now, setNow] = React.useState(1);
  React.useEffect(() => {
    if (now < end) {
      const frame = requestAnimationFrame(() => setNow(now + 1));
      return () => cancelAnimationFrame(frame);
    }
    return undefined;
  }, [now, end]);
  return now;
}
