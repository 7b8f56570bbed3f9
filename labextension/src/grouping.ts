import { deviceState } from './overview';
import { IDevice, INode, ISnapshot } from './schema';

/** What the rows of devices are put together by. */
export type Grouping = 'node' | 'user' | 'model' | 'state';

export const GROUPINGS: readonly Grouping[] = ['node', 'user', 'model', 'state'];

/** Devices that belong together; `node` where that is what they share. */
export interface IGroup {
  key: string;
  name: string;
  node: INode | null;
  devices: IDevice[];
  free: number;
}

/** A line of the list: the head of a group, or a device. */
export type Line =
  | { kind: 'head'; key: string; group: IGroup; folded: boolean }
  | { kind: 'device'; key: string; device: IDevice };

/** The devices that match, in groups: nodes by host, others by name; empty nodes stay. */
export function grouped(snapshot: ISnapshot, by: Grouping, filter: string): IGroup[] {
  const groups = new Map<string, IGroup>();
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  if (by === 'node' && words.length === 0) {
    for (const node of Object.values(snapshot.nodes)) {
      const name = node.host || node.id;
      groups.set(node.id, { key: node.id, name, node, devices: [], free: 0 });
    }
  }
  for (const device of Object.values(snapshot.devices)) {
    if (!matches(device, snapshot, words)) {
      continue;
    }
    const key = keyOf(device, snapshot, by);
    let group = groups.get(key);
    if (!group) {
      const node = by === 'node' ? (snapshot.nodes[key] ?? null) : null;
      group = { key, name: node?.host ?? key, node, devices: [], free: 0 };
      groups.set(key, group);
    }
    group.devices.push(device);
    if (deviceState(device, snapshot) === 'free') {
      group.free++;
    }
  }
  const sorted = [...groups.values()].sort((a, b) =>
    a.name < b.name ? -1 : Number(a.name > b.name)
  );
  sorted.forEach(group => group.devices.sort(inOrder));
  return sorted;
}

/** Groups as one flat list; a folded group is its head alone. */
export function lines(groups: IGroup[], folded: ReadonlySet<string>): Line[] {
  return groups.flatMap(group => {
    const closed = folded.has(foldOf(group));
    const head: Line = { kind: 'head', key: foldOf(group), group, folded: closed };
    return [
      head,
      ...(closed
        ? []
        : group.devices.map(device => ({
            kind: 'device' as const,
            key: device.id,
            device
          })))
    ];
  });
}

/** Under which name it is kept that a group is folded. */
export function foldOf(group: IGroup): string {
  return `group:${group.key}`;
}

function inOrder(a: IDevice, b: IDevice): number {
  return (
    Number(a.kind === 'cpu') - Number(b.kind === 'cpu') ||
    (a.host < b.host ? -1 : Number(a.host > b.host)) ||
    a.index - b.index
  );
}

function keyOf(device: IDevice, snapshot: ISnapshot, by: Grouping): string {
  switch (by) {
    case 'node':
      return device.node;
    case 'user':
      return device.holder?.user ?? '';
    case 'model':
      return device.name;
    case 'state':
      return deviceState(device, snapshot);
  }
}

function matches(device: IDevice, snapshot: ISnapshot, words: string[]): boolean {
  if (words.length === 0) {
    return true;
  }
  const holders = device.shares?.length
    ? device.shares
    : device.holder
      ? [device.holder]
      : [];
  const text = [
    device.id,
    device.host,
    device.kind,
    device.name,
    `${device.kind === 'cpu' ? 'cpu' : 'gpu'} ${device.index}`,
    deviceState(device, snapshot),
    ...holders.flatMap(one => [one.user, one.label, snapshot.runs[one.run]?.name ?? '']),
    ...device.outside.flatMap(process => [process.name, process.user, `${process.pid}`])
  ]
    .join('\n')
    .toLowerCase();
  return words.every(word => text.includes(word));
}
