import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { IDataset } from './datasets';
import { IEndpointAnswer, IEndpointForm } from './endpoints';
import { IPast } from './history';
import { IVersion } from './registry';
import { IClusterEvent } from './schema';

/** The server refused, or could not be reached; the message is a sentence for people. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number
  ) {
    super(message);
  }
}

type Query = Record<string, string>;

/** Lines of a run's log. `numbers` are their places in the whole log, `next` where to go on. */
export interface ILogPage {
  lines: string[];
  ranks: number[];
  numbers: number[];
  next: number;
  /** How many lines at the log's begin are no longer kept. */
  dropped: number;
  /** The run has ended, and these are its last lines. */
  complete: boolean;
}

/** Which lines: after one, of one rank, with some text in them. */
export interface ILogQuery {
  rank?: number;
  after?: number;
  search?: string;
}

/** A metric's whole course; `step` is null where the code gives none. */
export interface IMetricCourse {
  time: number[];
  step: (number | null)[];
  value: (number | null)[];
}

/** A call; `users`: it is of the user's own code, and `source` has its line. */
export interface IFrame {
  function: string;
  file: string;
  line: number;
  users: boolean;
  source: string;
}

/** What one rank does now, or where it failed. */
export interface IRankStacks {
  rank: number;
  pid: number;
  device: string;
  threads: { name: string; active: boolean | null; frames: IFrame[] }[];
  failure: string;
  note: string;
}

/** A kernel of this server: the process that leases belong to. */
export interface IKernelProcess {
  host: string;
  pid: number;
}

/** Paths of what a batch has made, for JupyterLab's file browser; `table` is empty at first. */
export interface IResults {
  folder: string;
  table: string;
}

/** What the front end asks of the server: the routes of `aios_jupyter/server/routes.py`. */
export interface IApi {
  snapshot(known: { stream: string; seq: number }): Promise<IClusterEvent>;
  startCluster(): Promise<IClusterEvent>;
  release(lease: string): Promise<void>;
  cancel(request: string): Promise<void>;
  reprioritize(request: string, priority: number): Promise<void>;
  stopRun(run: string): Promise<void>;
  stopBatch(batch: string): Promise<void>;
  batchResults(batch: string): Promise<IResults>;
  extend(lease: string, seconds: number): Promise<void>;
  history(): Promise<IPast>;
  runLog(run: string, query: ILogQuery): Promise<ILogPage>;
  runMetrics(run: string): Promise<Record<string, IMetricCourse>>;
  runStacks(run: string): Promise<IRankStacks[]>;
  runProfile(run: string, rank: number): Promise<Blob>;
  models(): Promise<{ models: IVersion[] }>;
  promote(model: string, version: number, alias: string): Promise<void>;
  rollback(model: string, alias: string): Promise<void>;
  endpoint(name: string): Promise<IEndpointForm>;
  /** The answer of an endpoint to a body, which is JSON. */
  predict(name: string, body: string): Promise<IEndpointAnswer>;
  datasets(): Promise<IDataset[]>;
  dataset(name: string): Promise<IDataset[]>;
  /** As a `data:` URL. */
  datasetPicture(ref: string): Promise<string>;
  kernels(): Promise<Record<string, IKernelProcess>>;
}

/** The routes over HTTP, with Jupyter's own authentication. */
export class Api implements IApi {
  constructor(private _settings: ServerConnection.ISettings) {}

  snapshot(known: { stream: string; seq: number }): Promise<IClusterEvent> {
    const query: Query = known.stream
      ? { stream: known.stream, seq: `${known.seq}` }
      : {};
    return this._request('GET', ['snapshot'], query);
  }

  startCluster(): Promise<IClusterEvent> {
    return this._request('POST', ['cluster']);
  }

  release(lease: string): Promise<void> {
    return this._request('DELETE', ['leases', lease]);
  }

  cancel(request: string): Promise<void> {
    return this._request('DELETE', ['queue', request]);
  }

  reprioritize(request: string, priority: number): Promise<void> {
    return this._request('POST', ['queue', request, 'priority'], {}, { priority });
  }

  stopRun(run: string): Promise<void> {
    return this._request('POST', ['runs', run, 'stop']);
  }

  stopBatch(batch: string): Promise<void> {
    return this._request('POST', ['batches', batch, 'stop']);
  }

  batchResults(batch: string): Promise<IResults> {
    return this._request('GET', ['batches', batch, 'results']);
  }

  extend(lease: string, seconds: number): Promise<void> {
    return this._request('POST', ['leases', lease, 'extend'], {}, { time: seconds });
  }

  history(): Promise<IPast> {
    return this._request('GET', ['history']);
  }

  runLog(run: string, query: ILogQuery): Promise<ILogPage> {
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    return this._request(
      'GET',
      ['runs', run, 'logs'],
      Object.fromEntries(given.map(([key, value]) => [key, `${value}`]))
    );
  }

  async runMetrics(run: string): Promise<Record<string, IMetricCourse>> {
    const path = ['runs', run, 'metrics'];
    const answer = await this._request<{ metrics: Record<string, IMetricCourse> }>(
      'GET',
      path
    );
    return answer.metrics;
  }

  async runStacks(run: string): Promise<IRankStacks[]> {
    const path = ['runs', run, 'stacks'];
    return (await this._request<{ ranks: IRankStacks[] }>('GET', path)).ranks;
  }

  async runProfile(run: string, rank: number): Promise<Blob> {
    const response = await this._send('GET', ['runs', run, 'profile'], {
      rank: `${rank}`
    });
    return response.blob();
  }

  models(): Promise<{ models: IVersion[] }> {
    return this._request('GET', ['models']);
  }

  promote(model: string, version: number, alias: string): Promise<void> {
    return this._request('PUT', ['models', model, 'aliases', alias], {}, { version });
  }

  rollback(model: string, alias: string): Promise<void> {
    return this._request('PUT', ['models', model, 'aliases', alias], {}, { back: true });
  }

  endpoint(name: string): Promise<IEndpointForm> {
    return this._request('GET', ['endpoints', name]);
  }

  predict(name: string, body: string): Promise<IEndpointAnswer> {
    return this._request('POST', ['endpoints', name, 'predict'], {}, body);
  }

  async datasets(): Promise<IDataset[]> {
    return (await this._request<{ datasets: IDataset[] }>('GET', ['datasets'])).datasets;
  }

  async dataset(name: string): Promise<IDataset[]> {
    const path = ['datasets', name];
    return (await this._request<{ versions: IDataset[] }>('GET', path)).versions;
  }

  async datasetPicture(ref: string): Promise<string> {
    const drawn = await (await this._send('GET', ['datasets', ref, 'picture'])).blob();
    return new Promise((done, fail) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result as string);
      reader.onerror = () => fail(new ApiError('The picture could not be read.', 0));
      reader.readAsDataURL(drawn);
    });
  }

  async kernels(): Promise<Record<string, IKernelProcess>> {
    const path = ['kernels'];
    return (await this._request<{ kernels: Record<string, IKernelProcess> }>('GET', path))
      .kernels;
  }

  private async _request<T>(
    method: string,
    path: string[],
    query: Query = {},
    body: unknown = {}
  ): Promise<T> {
    const response = await this._send(method, path, query, body);
    return (await response.json()) as T;
  }

  /** `body` is sent as JSON; text is that already. */
  private async _send(
    method: string,
    path: string[],
    query: Query = {},
    body: unknown = {}
  ): Promise<Response> {
    const url =
      URLExt.join(this._settings.baseUrl, 'aios', ...path.map(encodeURIComponent)) +
      URLExt.objectToQueryString(query);
    const withBody = method === 'POST' || method === 'PUT';
    let response: Response;
    try {
      const content = typeof body === 'string' ? body : JSON.stringify(body);
      const init = { method, ...(withBody ? { body: content } : {}) };
      response = await ServerConnection.makeRequest(url, init, this._settings);
    } catch {
      throw new ApiError('The Jupyter server does not answer.', 0);
    }
    if (!response.ok) {
      const told = (await response.json().catch(() => ({}))) as { message?: string };
      throw new ApiError(
        told.message || `The Jupyter server answered ${response.status}.`,
        response.status
      );
    }
    return response;
  }
}
