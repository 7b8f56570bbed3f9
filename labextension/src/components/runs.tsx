import { TranslationBundle } from '@jupyterlab/translation';
import * as React from 'react';

import { clock, count, duration, metric, metricName, percent } from '../format';
import { mainMetric } from '../history';
import { mayEnd, RunLine, runLines, sortedRuns } from '../overview';
import { IRun, isLive } from '../schema';
import { CommandIDs } from '../tokens';
import { ProgressBar } from './bar';
import { BatchHead } from './batch';
import { Icon } from './icon';
import { Spark } from './plot';
import { Rows } from './rows';
import { Action, IFolds, Nothing, Open } from './section';
import { useModel, useNow, useServices } from './services';

/** Ended runs that are shown before one asks for all. */
const RECENT = 5;
/** Metrics that are shown in a row; the others are in its tooltip. */
const METRICS = 4;

/** Runs and batches: live ones, then those that ended. */
export function RunsSection(props: { folds: IFolds }): React.ReactElement {
  const { trans } = useServices();
  const all = useModel(model => model.snapshot?.runs);
  const batches = useModel(model => model.snapshot?.batches);
  const [everything, showEverything] = React.useState(false);
  const { folded, toggle } = props.folds;
  const { lines, left } = React.useMemo(
    () =>
      runLines(
        all ? sortedRuns(all).runs : [],
        batches ?? {},
        folded,
        everything ? Infinity : RECENT
      ),
    [all, batches, folded, everything]
  );
  if (lines.length === 0) {
    return (
      <Nothing command="%%aios train">
        {trans.__('No runs yet. On top of a cell:')}
      </Nothing>
    );
  }
  return (
    <>
      <Rows<RunLine>
        items={lines}
        keyOf={line => line.key}
        height={line => (line.kind === 'batch' ? 50 : isLive(line.run) ? 96 : 66)}
        label={trans.__('Runs')}
      >
        {line =>
          line.kind === 'batch' ? (
            <BatchHead batch={line.batch} open={line.open} toggle={toggle} />
          ) : (
            <RunRow run={line.run} inBatch={line.inBatch} />
          )
        }
      </Rows>
      {left > 0 && (
        <button className="aios-More" onClick={() => showEverything(true)}>
          {trans.__('Show %1 earlier', left)}
        </button>
      )}
    </>
  );
}

const RunRow = React.memo(function RunRow(props: {
  run: IRun;
  inBatch: boolean;
}): React.ReactElement {
  const { trans } = useServices();
  const { run } = props;
  const live = isLive(run);
  const { done, total, unit, label } = run.progress;
  const moving = live && (total > 0 || done > 0 || run.state === 'starting');
  return (
    <div
      className="aios-Row aios-Run"
      data-in-batch={props.inBatch || undefined}
      data-run={run.id}
      data-state={run.state}
    >
      <div className="aios-Row-head">
        <RunState state={run.state} />
        <Open
          className="aios-Row-title aios-Ellipsis"
          kind="run"
          id={run.id}
          label={trans.__('Details of %1', run.name || run.id)}
        >
          {run.name || run.id}
        </Open>
        <span className="aios-Row-label">{run.label === run.name ? '' : run.label}</span>
        <RunActions run={run} />
      </div>
      {moving && (
        <ProgressBar
          label={trans.__('Progress of %1', run.name)}
          percent={percent(done, total)}
          state={run.state}
        />
      )}
      <div className="aios-Facts aios-mod-wrap aios-Muted">
        <span>
          {done > 0 || total > 0
            ? progressText(done, total, unit, label)
            : stateText(run, trans)}
        </span>
        <span>
          {trans._n('%1 rank', '%1 ranks', run.world_size)}
          {run.framework && run.framework !== 'none' ? ` · ${run.framework}` : ''}
          {' · '}
          <Elapsed run={run} />
        </span>
      </div>
      <div className="aios-Run-metrics">
        <Metrics metrics={run.metrics} />
        <Course run={run} />
      </div>
      {run.reason && !live && run.state !== 'succeeded' && (
        <div className="aios-Reason">{run.reason}</div>
      )}
    </div>
  );
});

/** The buttons of a run: its log, and Stop while it lives. */
export function RunActions(props: { run: IRun }): React.ReactElement {
  const { commands, trans } = useServices();
  const { run } = props;
  const may = useModel(model => !!model.snapshot && mayEnd(model.snapshot, run.user));
  const mine = useModel(model => model.snapshot?.cluster.user === run.user);
  return (
    <>
      {mine && run.label.endsWith('.ipynb') && (
        <Action
          label={trans.__('Go to the notebook of %1', run.name)}
          onClick={() => void commands.execute(CommandIDs.jump, { run: run.id })}
        >
          <Icon name="jump" />
        </Action>
      )}
      {may && (
        <Action
          label={trans.__('Open the log of %1', run.name)}
          onClick={() => void commands.execute(CommandIDs.openLog, { run: run.id })}
        >
          <Icon name="log" />
        </Action>
      )}
      {isLive(run) && run.state !== 'stopping' && may && (
        <Action
          danger
          label={trans.__('Stop %1', run.name)}
          onClick={() => void commands.execute(CommandIDs.stopRun, { run: run.id })}
        >
          <Icon name="stop" />
        </Action>
      )}
    </>
  );
}

/** The states of runs in words. */
export function useStateName(): (state: IRun['state']) => string {
  const { trans } = useServices();
  const names: Record<IRun['state'], string> = {
    starting: trans.__('starting'),
    running: trans.__('running'),
    restarting: trans.__('restarting'),
    stopping: trans.__('stopping'),
    succeeded: trans.__('succeeded'),
    failed: trans.__('failed'),
    stopped: trans.__('stopped')
  };
  return state => names[state];
}

/** The state of a run as a dot, a tick or a cross. */
export function RunState(props: { state: IRun['state'] }): React.ReactElement {
  const name = useStateName()(props.state);
  const icons = { succeeded: 'check', failed: 'close', stopped: 'stop' } as const;
  const icon = props.state in icons ? icons[props.state as keyof typeof icons] : null;
  return (
    <span
      aria-label={name}
      className="aios-RunState"
      data-state={props.state}
      role="img"
      title={name}
    >
      {icon && <Icon name={icon} />}
    </span>
  );
}

/** The course of the metric that says how the run goes. */
function Course(props: { run: IRun }): React.ReactElement | null {
  const { sight, trans } = useServices();
  const courses = sight.model.history.run(props.run.id);
  const name = mainMetric(courses.keys());
  const course = name === null ? undefined : courses.get(name);
  if (name === null || !course || course.x.length < 2) {
    return null;
  }
  const values = course.y.filter((y): y is number => y !== null);
  const [first, last] = [values[0] ?? NaN, values[values.length - 1] ?? NaN];
  return (
    <Spark
      label={trans.__('%1 from %2 to %3', metricName(name), metric(first), metric(last))}
      course={course}
    />
  );
}

/** How long a run has taken, or took. */
export function Elapsed(props: { run: IRun }): React.ReactElement {
  const now = useNow();
  return <>{duration((props.run.ended ?? now) - props.run.started)}</>;
}

function Metrics(props: { metrics: Record<string, number> }): React.ReactElement | null {
  const entries = Object.entries(props.metrics);
  if (entries.length === 0) {
    return null;
  }
  const all = entries.map(([name, value]) => `${metricName(name)} ${metric(value)}`);
  return (
    <dl className="aios-Metrics" title={all.join('\n')}>
      {entries.slice(0, METRICS).map(([name, value]) => (
        <div key={name}>
          <dt>{metricName(name)}</dt>
          <dd data-metric={name}>{metric(value)}</dd>
        </div>
      ))}
    </dl>
  );
}

/** How far a run is: its own words, done of all, and the unit. */
export function progressText(
  done: number,
  total: number,
  unit: string,
  label: string
): string {
  const amount = total > 0 ? `${count(done)} / ${count(total)}` : count(done);
  return [label, `${amount} ${unit}`.trim()].filter(Boolean).join(' · ');
}

function stateText(run: IRun, trans: TranslationBundle): string {
  switch (run.state) {
    case 'starting':
      return trans.__('starting…');
    case 'running':
      return trans.__('running');
    case 'restarting':
      return trans.__('restarting…');
    case 'stopping':
      return trans.__('stopping…');
    default:
      return run.ended === null ? '' : clock(run.ended);
  }
}
