import * as React from 'react';

import { ICourse } from '../history';
import { forget, paint } from '../painter';
import { ILine, ILook, Plot } from '../plot';

/**
 * Lines that move; `label` says in words what they show, for who cannot see them.
 *
 * They are drawn while they are in sight, and not all in one frame.
 */
export function Lines(props: {
  label: string;
  lines: readonly ILine[];
  look: ILook;
  className?: string;
}): React.ReactElement {
  const host = React.useRef<HTMLDivElement>(null);
  const canvas = React.useRef<Canvas | null>(null);
  const { lines, look } = props;
  React.useEffect(() => {
    if (host.current) {
      canvas.current ??= new Canvas(host.current);
      canvas.current.draw(lines, look);
    }
  }, [lines, look]);
  React.useEffect(
    () => () => {
      canvas.current?.dispose();
      canvas.current = null;
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

/** A plot that is made when it comes into sight, and then kept up to date while it is. */
class Canvas {
  constructor(private _host: HTMLElement) {
    this._sight = new IntersectionObserver(
      entries => {
        const last = entries[entries.length - 1];
        this._width = last?.isIntersecting ? last.boundingClientRect.width : 0;
        this._ask();
      },
      { rootMargin: '100px' }
    );
    this._sight.observe(_host);
  }

  draw(lines: readonly ILine[], look: ILook): void {
    this._wanted = { lines, look };
    this._ask();
  }

  dispose(): void {
    this._sight.disconnect();
    forget(this);
    this._plot?.dispose();
  }

  private _ask(): void {
    if (this._width > 0 && this._wanted) {
      paint(this, () => this._draw());
    }
  }

  private _draw(): void {
    const wanted = this._wanted;
    this._wanted = null;
    if (wanted && this._plot) {
      this._plot.update(wanted.lines, wanted.look);
    } else if (wanted) {
      this._plot = new Plot(this._host, this._width, wanted.lines, wanted.look);
    }
  }

  private _plot: Plot | null = null;
  private _sight: IntersectionObserver;
  private _wanted: { lines: readonly ILine[]; look: ILook } | null = null;
  /** 0 while it is out of sight. */
  private _width = 0;
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
