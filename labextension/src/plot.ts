import uPlot from 'uplot';

import { ICourse } from './history';
import { metric } from './format';
import { forget, paint } from './painter';

/** One line of a plot; `color` is a variable of the theme. */
export interface ILine {
  label: string;
  color: string;
  course: ICourse;
  /** What is under the line is tinted. */
  filled?: boolean;
}

/** How a plot looks, apart from its lines. */
export interface ILook {
  height: number;
  /** Without axes, legend and cursor: a line beside words. */
  spark?: boolean;
  /** The range of x and y where the lines do not say. */
  x?: readonly [number, number];
  y?: readonly [number, number];
  logarithmic?: boolean;
  /** What x is, in the legend and below the axis. */
  xLabel?: string;
  xText?: (x: number) => string;
}

/**
 * One uPlot in an element, in the colors of the theme.
 *
 * uPlot draws on a canvas, which knows no CSS variables: colors are looked up, and everything is
 * drawn again when the theme changes.
 */
export class Plot {
  /** `width` is the element's, whoever knows it: to ask for it would have the page laid out. */
  constructor(
    private _host: HTMLElement,
    private _width: number,
    lines: readonly ILine[],
    private _look: ILook
  ) {
    this._plot = this._create(lines);
    this._sizes = new ResizeObserver(([entry]) => this._fit(entry?.contentRect.width));
    this._sizes.observe(_host);
    onTheme.add(this._recolor);
  }

  /** Draw other values, or other lines. */
  update(lines: readonly ILine[], look: ILook): void {
    const shape = (one: ILook, some: readonly ILine[] | null) =>
      JSON.stringify([
        one.height,
        one.logarithmic,
        some?.map(line => [line.label, line.color]) ?? this._labels
      ]);
    const before = shape(this._look, null);
    this._look = look;
    if (shape(look, lines) !== before) {
      this._plot.destroy();
      this._zoomed = false;
      this._plot = this._create(lines);
    } else {
      this._plot.setData(aligned(lines, look.logarithmic), !this._zoomed);
      if (this._zoomed) {
        this._plot.redraw();
      }
    }
  }

  dispose(): void {
    this._sizes.disconnect();
    onTheme.delete(this._recolor);
    forget(this._recolor);
    this._plot.destroy();
  }

  private _create(lines: readonly ILine[]): uPlot {
    this._labels = lines.map(line => [line.label, line.color]);
    const { spark } = this._look;
    return new uPlot(
      {
        width: whole(this._width),
        height: this._look.height,
        padding: spark ? [1, 0, 1, 0] : [8, 12, 0, 0],
        legend: { show: !spark },
        cursor: spark ? { show: false } : { y: false, drag: { x: true, y: false } },
        scales: {
          x: { time: false, range: (_, low, high) => this._xRange(low, high) },
          y: {
            distr: this._look.logarithmic ? 3 : 1,
            ...(this._look.y ? { range: [...this._look.y] as [number, number] } : {})
          }
        },
        axes: spark ? [{ show: false }, { show: false }] : [this._axis(0), this._axis(1)],
        series: [
          {
            label: this._look.xLabel ?? '',
            value: (_, x) => (x === null ? '–' : this._xText(x))
          },
          ...lines.map(line => this._series(line))
        ],
        hooks: {
          setSelect: [plot => (this._zoomed ||= plot.select.width > 0)],
          ready: [
            plot => plot.over.addEventListener('dblclick', () => (this._zoomed = false))
          ]
        }
      },
      aligned(lines, this._look.logarithmic),
      this._host
    );
  }

  private _series(line: ILine): uPlot.Series {
    const spark = this._look.spark;
    return {
      label: line.label,
      stroke: () => color(line.color),
      width: spark ? 1.25 : 1.5,
      spanGaps: false,
      points: { show: spark ? false : undefined },
      value: (_, y) => (y === null ? '–' : metric(y)),
      ...(line.filled ? { fill: () => translucent(color(line.color)), fillTo: 0 } : {})
    };
  }

  private _axis(which: 0 | 1): uPlot.Axis {
    const grid = () => color('--jp-border-color2');
    return {
      stroke: () => color('--jp-ui-font-color2'),
      font: `11px ${getComputedStyle(this._host).fontFamily}`,
      grid: { stroke: grid, width: 1 },
      ticks: { stroke: grid, width: 1, size: 4 },
      size: which === 0 ? 26 : 56,
      gap: 4,
      values: (_, splits) =>
        splits.map(value =>
          value === null ? '' : which === 0 ? this._xText(value) : metric(round(value))
        )
    };
  }

  private _xText(x: number): string {
    return this._look.xText?.(x) ?? metric(round(x));
  }

  private _xRange(low: number | null, high: number | null): [number, number] {
    if (this._look.x && !this._zoomed) {
      return [...this._look.x];
    }
    const [from, to] = [low ?? 0, high ?? 1];
    return from === to ? [from - 1, to + 1] : [from, to];
  }

  private _fit(width = 0): void {
    if (width > 0 && whole(width) !== this._plot.width) {
      this._width = width;
      this._plot.setSize({ width: whole(width), height: this._look.height });
    }
  }

  private _recolor = (): void => this._plot.redraw(false);

  private _plot: uPlot;
  private _labels: string[][] = [];
  private _zoomed = false;
  private _sizes: ResizeObserver;
}

const colors = new Map<string, string>();
/** What is to be called when the theme has changed. */
const onTheme = new Set<() => void>();
let themes: MutationObserver | undefined;

/** A variable's value; the lookup is kept, as it makes the browser compute styles. */
function color(variable: string): string {
  themes ??= followTheme();
  const known = colors.get(variable);
  const found =
    known ?? getComputedStyle(document.body).getPropertyValue(variable).trim();
  if (!found) {
    // The theme's style sheet is still on its way.
    return 'gray';
  }
  colors.set(variable, found);
  return found;
}

function followTheme(): MutationObserver {
  const observer = new MutationObserver(() =>
    requestAnimationFrame(() => {
      colors.clear();
      onTheme.forEach(draw => paint(draw, draw));
    })
  );
  observer.observe(document.body, { attributeFilter: ['data-jp-theme-name'] });
  return observer;
}

function whole(width: number): number {
  return Math.max(20, Math.floor(width));
}

/** The lines over one x, as uPlot wants them: gaps where a line has no value at an x. */
export function aligned(
  lines: readonly ILine[],
  logarithmic = false
): [number[], ...(number | null)[][]] {
  const drawn = (y: number | null | undefined): number | null =>
    y !== null && y !== undefined && Number.isFinite(y) && !(logarithmic && y <= 0)
      ? y
      : null;
  const first = lines[0]?.course.x ?? [];
  const alike = lines.every(
    ({ course: { x } }) =>
      x === first || (x.length === first.length && x.every((v, i) => v === first[i]))
  );
  if (alike) {
    return [[...first], ...lines.map(line => line.course.y.map(drawn))];
  }
  const x = [...new Set(lines.flatMap(line => [...line.course.x]))].sort((a, b) => a - b);
  const at = new Map(x.map((value, index) => [value, index]));
  const columns = lines.map(({ course }) => {
    const column = new Array<number | null>(x.length).fill(null);
    course.x.forEach((value, index) => {
      column[at.get(value) ?? 0] = drawn(course.y[index]);
    });
    return column;
  });
  return [x, ...columns];
}

function translucent(color: string): string {
  return `color-mix(in srgb, ${color} 18%, transparent)`;
}

/** Without the noise of binary fractions. */
function round(value: number): number {
  return Number(value.toPrecision(10));
}
