import * as React from 'react';

import { IDataset, lastReaders } from '../datasets';
import { bytes, clock, count } from '../format';
import { IRun } from '../schema';
import { Icon } from './icon';
import { Rows } from './rows';
import { Nothing, Open } from './section';
import { useDatasets, useModel, useServices } from './services';

/** The catalogue of data. */
export function DatasetsSection(): React.ReactElement {
  const { trans } = useServices();
  const { answer: datasets, trouble } = useDatasets();
  const runs = useModel(model => model.snapshot?.runs);
  const readers = React.useMemo(() => lastReaders(runs ?? {}), [runs]);
  return (
    <>
      {datasets && datasets.length > 0 && (
        <Rows
          items={datasets}
          keyOf={dataset => dataset.name}
          height={() => 46}
          label={trans.__('Datasets')}
        >
          {dataset => <DatasetRow dataset={dataset} reader={readers.get(dataset.name)} />}
        </Rows>
      )}
      {datasets?.length === 0 && (
        <Nothing command="%aios data add NAME URL">
          {trans.__('The catalogue is empty. In a notebook:')}
        </Nothing>
      )}
      {!datasets && !trouble && <Nothing>{trans.__('Asking the catalogue…')}</Nothing>}
      {trouble && <p className="aios-Nothing">{trouble}</p>}
    </>
  );
}

const DatasetRow = React.memo(function DatasetRow(props: {
  dataset: IDataset;
  reader: IRun | undefined;
}): React.ReactElement {
  const { trans } = useServices();
  const { dataset, reader } = props;
  return (
    <div className="aios-Row" data-dataset={dataset.name}>
      <div className="aios-Row-head">
        <Icon name="table" />
        <Open
          className="aios-Row-title aios-Ellipsis"
          kind="dataset"
          id={dataset.name}
          label={trans.__('Details of the dataset %1', dataset.name)}
        >
          {dataset.name}
        </Open>
        <span className="aios-Row-label" title={trans.__('Version')}>
          {dataset.version}
        </span>
      </div>
      <div className="aios-Facts aios-mod-wrap aios-Muted">
        <span>{trans.__('%1 rows · %2', count(dataset.rows), bytes(dataset.size))}</span>
        <span title={reader ? reader.name || reader.id : undefined}>
          {reader
            ? trans.__('used %1', clock(reader.started))
            : dataset.created > 0 && trans.__('made %1', clock(dataset.created))}
        </span>
      </div>
    </div>
  );
});
