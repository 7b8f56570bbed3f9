import * as React from 'react';

import { bytes } from '../format';
import { deviceState, INodeGroup, mainDevices, nodeGroups, totals } from '../overview';
import { DeviceRow } from './device';
import { Icon } from './icon';
import { Nothing } from './section';
import { useModel, useServices } from './services';

/** More cells than this do not fit the panel; proportions are drawn then. */
const MAX_CELLS = 64;

/** All devices at a glance: one cell for each, in the color of its state. */
export function Overview(): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  if (!snapshot) {
    return null;
  }
  const { devices, free } = totals(snapshot);
  const shown = new Set(mainDevices(snapshot));
  const states = nodeGroups(snapshot.nodes, snapshot.devices)
    .flatMap(group => group.devices)
    .filter(device => shown.has(device))
    .map(device => deviceState(device, snapshot));
  if (states.length > MAX_CELLS) {
    states.sort();
  }
  return (
    <div
      aria-label={trans.__('%1 of %2 devices are free', free, devices)}
      className="aios-Overview"
      data-many={states.length > MAX_CELLS || undefined}
      role="img"
    >
      {states.map((state, index) => (
        <span key={index} data-state={state} />
      ))}
    </div>
  );
}

/** Nodes and their devices. */
export function ClusterSection(): React.ReactElement | null {
  const { trans } = useServices();
  const nodes = useModel(model => model.snapshot?.nodes);
  const devices = useModel(model => model.snapshot?.devices);
  const groups = React.useMemo(
    () => nodeGroups(nodes ?? {}, devices ?? {}),
    [nodes, devices]
  );
  if (groups.length === 0) {
    return <Nothing>{trans.__('No node has joined yet.')}</Nothing>;
  }
  return (
    <>
      {groups.map(group => (
        <NodeGroup key={group.node.id} group={group} />
      ))}
    </>
  );
}

function NodeGroup(props: { group: INodeGroup }): React.ReactElement {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const { node, devices } = props.group;
  const size = [
    node.cpus > 0 && trans._n('%1 CPU', '%1 CPUs', node.cpus),
    node.memory > 0 && bytes(node.memory),
    node.warm?.processes > 0 &&
      trans.__('%1 warm (%2)', node.warm.frameworks.join(', '), bytes(node.warm.memory))
  ].filter(Boolean);
  return (
    <div className="aios-Node" data-state={node.state}>
      <div className="aios-Node-head" title={node.address}>
        <Icon name="node" />
        <span className="aios-Node-host">{node.host}</span>
        {node.state === 'up' ? (
          <span className="aios-Muted">{size.join(' · ')}</span>
        ) : (
          <span className="aios-Badge aios-mod-error">{trans.__('not reachable')}</span>
        )}
      </div>
      <ul className="aios-Rows" aria-label={trans.__('Devices of %1', node.host)}>
        {devices.map(device => (
          <DeviceRow
            key={device.id}
            device={device}
            run={snapshot?.runs[device.holder?.run ?? '']?.name ?? ''}
            state={snapshot ? deviceState(device, snapshot) : 'lost'}
            user={snapshot?.cluster.user ?? ''}
          />
        ))}
      </ul>
    </div>
  );
}
