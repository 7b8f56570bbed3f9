import * as React from 'react';

import { bytes, clock } from '../format';
import { Grouping, GROUPINGS, grouped, IGroup, Line, lines } from '../grouping';
import { counted, deviceState, load } from '../overview';
import { DeviceState } from '../overview';
import { INode } from '../schema';
import { DeviceRow } from './device';
import { Icon } from './icon';
import { Rows } from './rows';
import { IFolds, Nothing } from './section';
import { useModel, useServices } from './services';

/** More cells than this do not fit the panel; proportions are drawn then. */
const MAX_CELLS = 64;
/** From so many devices on there is something to filter. */
const FILTERED_FROM = 6;

/** All devices at a glance: one cell for each, in the color of its state. */
export function Overview(): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  if (!snapshot) {
    return null;
  }
  const { states, parts, free } = counted(snapshot);
  const many = states.length > MAX_CELLS;
  return (
    <div
      aria-label={trans.__('%1 of %2 devices are free', free, states.length)}
      className="aios-Overview"
      data-many={many || undefined}
      role="img"
    >
      {many
        ? parts.map(([state, count]) => (
            <span key={state} data-state={state} style={{ flexGrow: count }} />
          ))
        : states.map((state, index) => <span key={index} data-state={state} />)}
    </div>
  );
}

/** How busy the whole cluster is, in one line. */
export function Load(): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  if (!snapshot) {
    return null;
  }
  const { utilization, used, memory, power } = load(snapshot);
  const parts = [
    utilization !== null && trans.__('%1% busy', Math.round(utilization)),
    memory > 0 && trans.__('%1 of %2', bytes(used), bytes(memory)),
    power > 0 &&
      (power < 10_000
        ? trans.__('%1 W', Math.round(power))
        : trans.__('%1 kW', (power / 1000).toFixed(1)))
  ].filter(Boolean);
  return parts.length > 0 ? (
    <div
      className="aios-Load aios-Muted"
      title={trans.__('Utilization, memory and power of all devices that are measured')}
    >
      {parts.join(' · ')}
    </div>
  ) : null;
}

/** Nodes, or other groups, and their devices. */
export function ClusterSection(props: { folds: IFolds }): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const [filter, setFilter] = React.useState('');
  const [by, setBy] = React.useState<Grouping>('node');
  const { folded, toggle } = props.folds;
  const groups = React.useMemo(
    () => (snapshot ? grouped(snapshot, by, filter) : []),
    // Other sections change more often than these three.
    // eslint-disable-next-line react-hooks/exhaustive-deps
    [snapshot?.nodes, snapshot?.devices, snapshot?.cluster.user, by, filter]
  );
  const rows = React.useMemo(() => lines(groups, folded), [groups, folded]);
  if (!snapshot || Object.keys(snapshot.nodes).length === 0) {
    return <Nothing>{trans.__('No node has joined yet.')}</Nothing>;
  }
  const many = Object.keys(snapshot.devices).length >= FILTERED_FROM;
  return (
    <>
      {many && <Tools filter={filter} by={by} onFilter={setFilter} onGroup={setBy} />}
      {rows.length === 0 && <Nothing>{trans.__('No device matches.')}</Nothing>}
      <Rows<Line>
        items={rows}
        keyOf={line => line.key}
        height={line => (line.kind === 'head' ? 26 : 72)}
        label={trans.__('Devices')}
      >
        {line =>
          line.kind === 'head' ? (
            <GroupHead by={by} line={line} toggle={toggle} />
          ) : (
            <DeviceRow
              device={line.device}
              run={snapshot.runs[line.device.holder?.run ?? '']?.name ?? ''}
              state={deviceState(line.device, snapshot)}
              user={snapshot.cluster.user}
              withHost={by !== 'node'}
            />
          )
        }
      </Rows>
    </>
  );
}

function Tools(props: {
  filter: string;
  by: Grouping;
  onFilter: (filter: string) => void;
  onGroup: (by: Grouping) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const names: Record<Grouping, string> = {
    node: trans.__('by node'),
    user: trans.__('by user'),
    model: trans.__('by model'),
    state: trans.__('by state')
  };
  return (
    <div className="aios-Tools" role="search">
      <input
        aria-label={trans.__('Filter devices')}
        onChange={event => props.onFilter(event.currentTarget.value)}
        placeholder={trans.__('Filter: host, model, user, free…')}
        type="search"
        value={props.filter}
      />
      <select
        aria-label={trans.__('Group devices')}
        onChange={event => props.onGroup(event.currentTarget.value as Grouping)}
        value={props.by}
      >
        {GROUPINGS.map(one => (
          <option key={one} value={one}>
            {names[one]}
          </option>
        ))}
      </select>
    </div>
  );
}

function GroupHead(props: {
  by: Grouping;
  line: { group: IGroup; folded: boolean; key: string };
  toggle: (key: string) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const { group, folded, key } = props.line;
  const { node } = group;
  const size = [
    node && node.cpus > 0 && trans._n('%1 CPU', '%1 CPUs', node.cpus),
    node && node.memory > 0 && bytes(node.memory)
  ].filter(Boolean);
  const warm =
    node &&
    node.warm?.processes > 0 &&
    trans.__('%1 warm (%2)', node.warm.frameworks.join(', '), bytes(node.warm.memory));
  const until = node?.until ? trans.__('until %1', clock(node.until)) : '';
  const states: Record<DeviceState, string> = {
    free: trans.__('free'),
    mine: trans.__('yours'),
    held: trans.__('held by others'),
    outside: trans.__('in use outside any lease'),
    lost: trans.__('not reachable')
  };
  const badges: Record<INode['state'], string> = {
    up: '',
    lost: trans.__('not reachable'),
    waiting: trans.__('yet to come'),
    ended: trans.__('gone')
  };
  const badge = node ? badges[node.state] : '';
  const name =
    props.by === 'state'
      ? states[group.key as DeviceState]
      : group.name || trans.__('nobody');
  return (
    <button
      aria-expanded={!folded}
      className="aios-Node-head"
      data-state={node?.state}
      onClick={() => props.toggle(key)}
      title={[node?.address, ...size, node?.note].filter(Boolean).join(' · ')}
    >
      <Icon name="caret" className="aios-Caret" />
      {node && <Icon name="node" />}
      <span className="aios-Node-host">{name}</span>
      {badge ? (
        <>
          {node?.note && (
            <span className="aios-Node-note aios-Muted aios-Ellipsis">{node.note}</span>
          )}
          <span
            className={`aios-Badge${node?.state === 'lost' ? ' aios-mod-error' : ''}`}
          >
            {badge}
          </span>
        </>
      ) : (
        <span className="aios-Muted aios-Ellipsis">
          {[trans.__('%1 of %2 free', group.free, group.devices.length), until, warm]
            .filter(Boolean)
            .join(' · ')}
        </span>
      )}
    </button>
  );
}
