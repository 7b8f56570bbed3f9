import * as React from 'react';

import { ApiError, IApi } from '../api';
import { Open } from '../components/section';
import { useModel, useServices } from '../components/services';
import { IDataset, IField, lastReaders } from '../datasets';
import { bytes, clock, count, metric } from '../format';
import { Facts, Gone } from './facts';
import { Sheet } from './sheet';

/** A dataset: what is in it, what it looks like, where it comes from, and its versions. */
export function DatasetDetails(props: { name: string; api: IApi }): React.ReactElement {
  const { trans } = useServices();
  const { name, api } = props;
  const { found, trouble } = useAnswer(() => api.dataset(name));
  const newest = found?.[0];
  if (!newest) {
    return <Gone>{trouble || trans.__('Asking the catalogue…')}</Gone>;
  }
  return (
    <article aria-label={name}>
      <header className="aios-Details-head">
        <h2>{name}</h2>
        <span className="aios-Muted">{newest.version}</span>
      </header>
      <Facts
        facts={[
          [trans.__('Rows'), count(newest.rows)],
          [trans.__('Size'), `${bytes(newest.size)} (${newest.format})`],
          [trans.__('Classes'), classes(newest)],
          [trans.__('Comes from'), (newest.made_from ?? []).join(', ')],
          [trans.__('How'), newest.how ?? ''],
          [trans.__('Owner'), newest.owner ?? ''],
          [trans.__('Tags'), (newest.tags ?? []).join(', ')],
          [trans.__('Where'), newest.url],
          [trans.__('Last used by'), <Reader name={name} />]
        ]}
      />
      <Picture api={api} dataset={newest} key={newest.version} />
      <Columns fields={newest.fields ?? []} />
      {found.length > 1 && <Versions versions={found} />}
    </article>
  );
}

/** The classes, each with its number of rows where that is known. */
function classes(dataset: IDataset): string {
  return (dataset.classes ?? [])
    .map((name, place) => {
      const rows = dataset.counts?.[place];
      return rows === undefined ? name : `${name} (${count(rows)})`;
    })
    .join(', ');
}

function Reader(props: { name: string }): React.ReactElement {
  const { trans } = useServices();
  const runs = useModel(model => model.snapshot?.runs);
  const run = React.useMemo(
    () => lastReaders(runs ?? {}).get(props.name),
    [runs, props.name]
  );
  if (!run) {
    return <>{trans.__('no run that the cluster still knows')}</>;
  }
  const name = run.name || run.id;
  return (
    <>
      <Open className="" kind="run" id={run.id} label={trans.__('Details of %1', name)}>
        {name}
      </Open>{' '}
      ({clock(run.started)})
    </>
  );
}

/** What it looks like; it is drawn by the server, once for each version. */
function Picture(props: { api: IApi; dataset: IDataset }): React.ReactElement {
  const { trans } = useServices();
  const { api, dataset } = props;
  const ref = `${dataset.name}@${dataset.version}`;
  const { found, trouble } = useAnswer(() => api.datasetPicture(ref));
  if (!found) {
    return (
      <p className="aios-Muted" role="status">
        {trouble || trans.__('The picture is being drawn…')}
      </p>
    );
  }
  return (
    <img
      alt={trans.__('What %1 looks like', dataset.name)}
      className="aios-Picture"
      src={found}
    />
  );
}

function Columns(props: { fields: readonly IField[] }): React.ReactElement | null {
  const { trans } = useServices();
  const number = (value: number | null) => (value === null ? '' : metric(value));
  if (props.fields.length === 0) {
    return null;
  }
  return (
    <>
      <h3>{trans.__('Columns')}</h3>
      <Sheet
        heads={[
          trans.__('Name'),
          trans.__('Type'),
          trans.__('Missing'),
          trans.__('Least'),
          trans.__('Mean'),
          trans.__('Most'),
          trans.__('Deviation'),
          trans.__('Example')
        ]}
      >
        {props.fields.map(field => (
          <tr data-field={field.name} key={field.name}>
            <th scope="row">{field.name}</th>
            <td>{field.kind}</td>
            <td>{field.missing ? count(field.missing) : ''}</td>
            <td>{number(field.least)}</td>
            <td>{number(field.mean)}</td>
            <td>{number(field.most)}</td>
            <td>{number(field.deviation)}</td>
            <td>{field.example}</td>
          </tr>
        ))}
      </Sheet>
    </>
  );
}

function Versions(props: { versions: readonly IDataset[] }): React.ReactElement {
  const { trans } = useServices();
  return (
    <>
      <h3>{trans.__('Versions')}</h3>
      <Sheet
        heads={[
          trans.__('Version'),
          trans.__('Rows'),
          trans.__('Size'),
          trans.__('Made'),
          trans.__('How')
        ]}
      >
        {props.versions.map(one => (
          <tr data-version={one.version} key={one.version}>
            <th scope="row">{one.version}</th>
            <td>{count(one.rows)}</td>
            <td>{bytes(one.size)}</td>
            <td>{one.created > 0 ? clock(one.created) : ''}</td>
            <td>{one.how}</td>
          </tr>
        ))}
      </Sheet>
    </>
  );
}

/** What the server answers, asked once; `trouble` is the sentence of a refusal. */
function useAnswer<T>(ask: () => Promise<T>): { found: T | null; trouble: string } {
  const [answer, setAnswer] = React.useState<{ found: T | null; trouble: string }>({
    found: null,
    trouble: ''
  });
  React.useEffect(() => {
    let wanted = true;
    ask().then(
      found => wanted && setAnswer({ found, trouble: '' }),
      (error: unknown) =>
        wanted &&
        setAnswer({
          found: null,
          trouble: error instanceof ApiError ? error.message : String(error)
        })
    );
    return () => {
      wanted = false;
    };
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, []);
  return answer;
}
