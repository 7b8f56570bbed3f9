import * as React from 'react';

import { IApi } from '../api';
import { ProgressBar } from '../components/bar';
import { Icon } from '../components/icon';
import { Elapsed, progressText, RunState, useStateName } from '../components/runs';
import { Action, Open } from '../components/section';
import { useModel, useServices } from '../components/services';
import { percent } from '../format';
import { mayEnd } from '../overview';
import { IRun, isLive } from '../schema';
import { CommandIDs } from '../tokens';
import { Charts } from './charts';
import { Gone } from './facts';
import { LogView } from './log';
import { Profile } from './profile';
import { Stacks } from './stacks';
import { TryIt } from './try';

export type RunTab = 'try' | 'charts' | 'log' | 'stacks' | 'profile';

/** A run: its charts, its log, what its ranks do now, its profile; an endpoint can be tried. */
export function RunDetails(props: {
  id: string;
  api: IApi;
  tab: RunTab;
  onTab: (tab: RunTab) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const run = useModel(model => model.snapshot?.runs[props.id]);
  const may = useModel(
    model => !!model.snapshot && !!run && mayEnd(model.snapshot, run.user)
  );
  if (!run) {
    return <Gone>{trans.__('The cluster no longer knows the run %1.', props.id)}</Gone>;
  }
  const { api, tab } = props;
  const names: Partial<Record<RunTab, string>> = {
    ...(run.kind === 'endpoint' ? { try: trans.__('Try it') } : {}),
    charts: trans.__('Charts'),
    log: trans.__('Log'),
    stacks: trans.__('Stacks'),
    profile: trans.__('Profile')
  };
  return (
    <article aria-label={run.name} className="aios-RunDetails" data-run={run.id}>
      <RunHead run={run} />
      {may ? (
        <>
          <Tabs id={run.id} names={names} tab={tab} onTab={props.onTab} />
          <div
            aria-labelledby={`aios-tab-${tab}-${run.id}`}
            className="aios-Tab-body"
            role="tabpanel"
          >
            {tab === 'try' && <TryIt api={api} run={run} />}
            {tab === 'charts' && <Charts api={api} run={run} />}
            {tab === 'log' && <LogView api={api} run={run} />}
            {tab === 'stacks' && <Stacks api={api} run={run} />}
            {tab === 'profile' && <Profile api={api} run={run} />}
          </div>
        </>
      ) : (
        <p className="aios-Gone">
          {trans.__('Its metrics and logs are for %1 and admins.', run.user)}
        </p>
      )}
    </article>
  );
}

function RunHead(props: { run: IRun }): React.ReactElement {
  const { commands, trans } = useServices();
  const { run } = props;
  const snapshot = useModel(model => model.snapshot);
  const stateName = useStateName();
  const live = isLive(run);
  const mine = !!snapshot && mayEnd(snapshot, run.user);
  const lease = snapshot?.leases[run.lease];
  const { done, total, unit, label } = run.progress;
  return (
    <header>
      <div className="aios-Details-head">
        <RunState state={run.state} />
        <h2>{run.name || run.id}</h2>
        <span className="aios-Muted">
          {stateName(run.state)} · <Elapsed run={run} />
        </span>
        {run.label.endsWith('.ipynb') && run.user === snapshot?.cluster.user && (
          <Action
            label={trans.__('Go to the notebook of %1', run.name)}
            onClick={() => void commands.execute(CommandIDs.jump, { run: run.id })}
          >
            <Icon name="jump" />
          </Action>
        )}
        {live && run.state !== 'stopping' && mine && (
          <button
            className="jp-mod-styled jp-mod-warn"
            onClick={() => void commands.execute(CommandIDs.stopRun, { run: run.id })}
          >
            {trans.__('Stop…')}
          </button>
        )}
      </div>
      <p className="aios-Muted aios-Details-about">
        {[
          run.user,
          run.label,
          trans._n('%1 rank', '%1 ranks', run.world_size),
          run.framework === 'none' ? '' : run.framework,
          run.id
        ]
          .filter(Boolean)
          .join(' · ')}
        {lease && (
          <>
            {' · '}
            <Open
              className=""
              kind="lease"
              id={lease.id}
              label={trans.__('Details of the lease %1', lease.label || lease.id)}
            >
              {trans.__('lease')}
            </Open>
          </>
        )}
      </p>
      {live && (
        <ProgressBar
          label={trans.__('Progress of %1', run.name)}
          percent={percent(done, total)}
          state={run.state}
        />
      )}
      {(done > 0 || total > 0) && (
        <p className="aios-Muted">{progressText(done, total, unit, label)}</p>
      )}
      {run.reason && <p className="aios-Reason">{run.reason}</p>}
    </header>
  );
}

/** Tabs that the arrow keys go through. */
function Tabs(tabs: {
  id: string;
  names: Partial<Record<RunTab, string>>;
  tab: RunTab;
  onTab: (tab: RunTab) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const all = Object.keys(tabs.names) as RunTab[];
  const onKey = (event: React.KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = all[(all.indexOf(tabs.tab) + step + all.length) % all.length];
      if (next) {
        tabs.onTab(next);
        const list = event.currentTarget;
        requestAnimationFrame(() =>
          list.querySelector<HTMLElement>('[aria-selected=true]')?.focus()
        );
      }
    }
  };
  return (
    <div
      aria-label={trans.__('Parts of the run')}
      className="aios-Tabs"
      onKeyDown={onKey}
      role="tablist"
    >
      {all.map(name => (
        <button
          aria-selected={name === tabs.tab}
          id={`aios-tab-${name}-${tabs.id}`}
          key={name}
          onClick={() => tabs.onTab(name)}
          role="tab"
          tabIndex={name === tabs.tab ? 0 : -1}
        >
          {tabs.names[name]}
        </button>
      ))}
    </div>
  );
}
