import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

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

/** The lines of a run's log. */
export interface IRunLog {
  run: string;
  rank: number | null;
  lines: string[];
}

/** What the front end asks of the server: the routes of `aios_jupyter/server/routes.py`. */
export interface IApi {
  snapshot(known: { stream: string; seq: number }): Promise<IClusterEvent>;
  startCluster(): Promise<IClusterEvent>;
  release(lease: string): Promise<void>;
  cancel(request: string): Promise<void>;
  stopRun(run: string): Promise<void>;
  runLog(run: string, rank: number | null): Promise<IRunLog>;
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

  stopRun(run: string): Promise<void> {
    return this._request('POST', ['runs', run, 'stop']);
  }

  runLog(run: string, rank: number | null): Promise<IRunLog> {
    const query: Query = rank === null ? {} : { rank: `${rank}` };
    return this._request('GET', ['runs', run, 'logs'], query);
  }

  private async _request<T>(
    method: string,
    path: string[],
    query: Query = {}
  ): Promise<T> {
    const url =
      URLExt.join(this._settings.baseUrl, 'aios', ...path.map(encodeURIComponent)) +
      URLExt.objectToQueryString(query);
    let response: Response;
    try {
      const init = { method, ...(method === 'POST' ? { body: '{}' } : {}) };
      response = await ServerConnection.makeRequest(url, init, this._settings);
    } catch {
      throw new ApiError('The Jupyter server does not answer.', 0);
    }
    const body = (await response.json().catch(() => ({}))) as { message?: string };
    if (!response.ok) {
      throw new ApiError(
        body.message || `The Jupyter server answered ${response.status}.`,
        response.status
      );
    }
    return body as T;
  }
}
