import * as React from 'react';

import { ICourse } from '../history';
import { ILine, ILook, Plot } from '../plot';

/** Lines that move; `label` says in words what they show, for who cannot see them. */
export function Lines(props: {
  label: string;
  lines: readonly ILine[];
  look: ILook;
  className?: string;
}): React.ReactElement {
  const host = React.useRef<HTMLDivElement>(null);
  const plot = React.useRef<Plot | null>(null);
  const { lines, look } = props;
  React.useEffect(() => {
    if (!host.current) {
      return;
    }
    if (plot.current) {
      plot.current.update(lines, look);
    } else {
      plot.current = new Plot(host.current, lines, look);
    }
  }, [lines, look]);
  React.useEffect(
    () => () => {
      plot.current?.dispose();
      plot.current = null;
    },
    []
  );
  return (
    <div
      aria-label={props.label}
      className={`aios-Plot ${props.className ?? ''}`}
      ref={host}
      role="img"
      style={{ minHeight: look.height }}
    />
  );
}

const SPARK: ILook = { height: 22, spark: true };

/** A metric's course without axes. */
export function Spark(props: { label: string; course: ICourse }): React.ReactElement {
  const { course } = props;
  // A course is one object that grows: its length says whether there is something new.
  const points = course.x.length;
  const last = course.x[points - 1];
  const lines = React.useMemo(
    () => [{ label: props.label, color: '--jp-brand-color1', course }],
    // eslint-disable-next-line react-hooks/exhaustive-deps
    [props.label, course, points, last]
  );
  return <Lines className="aios-Spark" label={props.label} lines={lines} look={SPARK} />;
}
