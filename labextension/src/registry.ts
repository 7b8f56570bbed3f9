import { IApi } from './api';
import { Asked } from './asked';
import { ClusterModel } from './model';

/** One published version: a row of `GET aios/models`. */
export interface IVersion {
  ref: string;
  name: string;
  version: number;
  aliases: string[];
  /** Alias of this version → the version that it named before. */
  before?: Record<string, number>;
  metrics: Record<string, number>;
  params: Record<string, string>;
  created: number;
  framework: string;
  lineage: Record<string, string>;
  /** Who has signed it; none from a server of an older version. */
  signed?: ISigned[];
  signature: { inputs?: ITensor[]; outputs?: ITensor[] };
}

/** A signature: who made it, and what it is worth here. */
export interface ISigned {
  name: string;
  role: string;
  /** It holds and its signer is known here; it holds; it does not. */
  standing: 'known' | 'unknown' | 'broken';
  /** Why it is worth no more, as the server says it. */
  problem: string;
}

export interface ITensor {
  name: string;
  datatype: string;
  /** -1 for any size. */
  shape: number[];
  /** Whether a value may be null. */
  missing?: boolean;
}

/** A model with its versions, the newest first. */
export interface IModel {
  name: string;
  versions: IVersion[];
  /** Alias → version. */
  aliases: Record<string, number>;
}

/** The models of the registry by name. */
export class Registry extends Asked<IModel[]> {
  constructor(api: IApi, cluster: ClusterModel) {
    super('models', async () => byName((await api.models()).models), cluster);
  }

  /** The models by name; null before the first answer. */
  get models(): IModel[] | null {
    return this.answer;
  }
}

/** Versions as models, in the order of their names. */
export function byName(versions: readonly IVersion[]): IModel[] {
  const models = new Map<string, IModel>();
  for (const version of versions) {
    const model = models.get(version.name) ?? {
      name: version.name,
      versions: [],
      aliases: {}
    };
    model.versions.push(version);
    version.aliases.forEach(alias => (model.aliases[alias] = version.version));
    models.set(version.name, model);
  }
  for (const model of models.values()) {
    model.versions.sort((a, b) => b.version - a.version);
  }
  return [...models.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The version to which an alias goes back: what it named before; null when it named no other. */
export function versionBefore(model: IModel, alias: string): number | null {
  const now = model.aliases[alias];
  return model.versions.find(({ version }) => version === now)?.before?.[alias] ?? null;
}

/** What a tensor holds, as people read it: "FP32 ? × 28 × 28". */
export function contentText({ datatype, shape }: ITensor): string {
  return `${datatype} ${shape.map(size => (size < 0 ? '?' : size)).join(' × ')}`;
}
