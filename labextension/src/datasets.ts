import { IApi } from './api';
import { Asked } from './asked';
import { ClusterModel } from './model';
import { IRun } from './schema';

/** One version of a dataset: a row of `GET aios/datasets`. */
export interface IDataset {
  name: string;
  version: string;
  url: string;
  format: string;
  rows: number;
  size: number;
  /** Array or column → type. */
  schema: Record<string, string>;
  created: number;
  classes?: string[];
  /** How many rows have each class; not of what was added before that was known. */
  counts?: number[];
  made_from?: string[];
  how?: string;
  owner?: string;
  tags?: string[];
  /** Only where one dataset was asked for. */
  fields?: IField[];
}

/** The statistics of a column; null where there are none. */
export interface IField {
  name: string;
  kind: string;
  missing: number;
  least: number | null;
  mean: number | null;
  most: number | null;
  deviation: number | null;
  example: string;
}

/** The newest version of each dataset, by name. */
export class Datasets extends Asked<IDataset[]> {
  constructor(api: IApi, cluster: ClusterModel) {
    super('datasets', () => api.datasets(), cluster);
  }
}

/** The runs that read each dataset last, by its name. */
export function lastReaders(runs: Record<string, IRun>): Map<string, IRun> {
  const found = new Map<string, IRun>();
  for (const run of Object.values(runs)) {
    const { data } = run.detail;
    for (const ref of Array.isArray(data) ? data : []) {
      const name = String(ref).split('@')[0] ?? '';
      const known = found.get(name);
      if (!known || run.started > known.started) {
        found.set(name, run);
      }
    }
  }
  return found;
}
