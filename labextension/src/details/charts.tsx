import * as React from 'react';

import { IApi, IMetricCourse } from '../api';
import { Lines } from '../components/plot';
import { useServices } from '../components/services';
import { duration, metric, metricName } from '../format';
import { ILine, ILook } from '../plot';
import { IRun, isLive } from '../schema';
import { useAnswer } from './poll';
import { smoothed } from './smooth';

const HEIGHT = 190;
/** How much of a smoothed value comes from those before it. */
const SMOOTH = 0.9;

/** A chart for each metric, over steps or time. */
export function Charts(props: { api: IApi; run: IRun }): React.ReactElement {
  const { trans } = useServices();
  const { api, run } = props;
  const live = isLive(run);
  const question = React.useCallback(() => api.runMetrics(run.id), [api, run.id]);
  const { value, trouble } = useAnswer(question, live);
  const [over, setOver] = React.useState<'step' | 'time'>('step');
  const [smooth, setSmooth] = React.useState(false);
  const [logarithmic, setLogarithmic] = React.useState(false);
  const names = Object.keys(value ?? {});
  return (
    <>
      <div className="aios-Tools">
        <label>
          {trans.__('Over')}{' '}
          <select
            onChange={event => setOver(event.currentTarget.value as 'step' | 'time')}
            value={over}
          >
            <option value="step">{trans.__('steps')}</option>
            <option value="time">{trans.__('time')}</option>
          </select>
        </label>
        <label>
          <input
            checked={smooth}
            onChange={event => setSmooth(event.currentTarget.checked)}
            type="checkbox"
          />{' '}
          {trans.__('smooth')}
        </label>
        <label>
          <input
            checked={logarithmic}
            onChange={event => setLogarithmic(event.currentTarget.checked)}
            type="checkbox"
          />{' '}
          {trans.__('logarithmic')}
        </label>
        {names.length > 0 && (
          <span className="aios-Muted">
            {trans.__('drag to zoom in, double-click to zoom out')}
          </span>
        )}
      </div>
      {trouble && <p className="aios-Reason">{trouble}</p>}
      {value && names.length === 0 && (
        <p className="aios-Muted">
          {trans.__('It has reported no metrics; in its code:')}{' '}
          <code>aios_jupyter.train.log(loss=…)</code>
        </p>
      )}
      <div className="aios-Charts">
        {names.map(name => (
          <Chart
            course={value?.[name] as IMetricCourse}
            key={name}
            logarithmic={logarithmic}
            name={name}
            over={over}
            smooth={smooth}
            started={run.started}
          />
        ))}
      </div>
    </>
  );
}

function Chart(props: {
  name: string;
  course: IMetricCourse;
  over: 'step' | 'time';
  smooth: boolean;
  logarithmic: boolean;
  started: number;
}): React.ReactElement {
  const { trans } = useServices();
  const { name, course, over, smooth, logarithmic, started } = props;
  const { lines, look, last } = React.useMemo(() => {
    const byStep = over === 'step';
    const x = course.time.map((time, index) =>
      byStep ? (course.step[index] ?? index + 1) : time - started
    );
    const raw: ILine = {
      label: metricName(name),
      color: smooth ? '--jp-border-color1' : '--jp-brand-color1',
      course: { x, y: course.value }
    };
    const lines = smooth
      ? [
          raw,
          {
            label: trans.__('smoothed'),
            color: '--jp-brand-color1',
            course: { x, y: smoothed(course.value, SMOOTH) }
          }
        ]
      : [raw];
    const look: ILook = {
      height: HEIGHT,
      logarithmic,
      xLabel: byStep ? trans.__('step') : trans.__('time'),
      ...(byStep ? {} : { xText: duration })
    };
    return { lines, look, last: course.value[course.value.length - 1] };
  }, [name, course, over, smooth, logarithmic, started, trans]);
  const now = typeof last === 'number' ? metric(last) : '–';
  return (
    <figure className="aios-Chart" data-chart={name}>
      <figcaption>
        {metricName(name)} <strong>{now}</strong>
      </figcaption>
      <Lines
        label={trans.__(
          '%1: %2 values, the last %3',
          metricName(name),
          course.value.length,
          now
        )}
        lines={lines}
        look={look}
      />
    </figure>
  );
}
