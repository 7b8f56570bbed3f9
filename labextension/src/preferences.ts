import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { TranslationBundle } from '@jupyterlab/translation';

import { setUnits } from './format';

/** What the user has chosen: the properties of `schema/settings.json`. */
export interface IPreferences {
  notifications: boolean;
  hiddenSections: readonly string[];
  pollSeconds: number;
  memoryUnit: 'binary' | 'decimal';
  temperatureUnit: 'celsius' | 'fahrenheit';
}

/** What holds where there are no settings; the schema has the same. */
export const DEFAULTS: IPreferences = {
  notifications: true,
  hiddenSections: [],
  pollSeconds: 1.5,
  memoryUnit: 'binary',
  temperatureUnit: 'celsius'
};

/** The schema that the settings are of. */
export const SETTINGS = 'aios-jupyter:settings';

/** Have `apply` called with the preferences, now and after each change. */
export async function follow(
  settings: ISettingRegistry | null,
  apply: (preferences: IPreferences) => void
): Promise<void> {
  const take = (chosen: object) => {
    const preferences = { ...DEFAULTS, ...chosen };
    setUnits(preferences);
    apply(preferences);
  };
  if (!settings) {
    take({});
    return;
  }
  const loaded = await settings.load(SETTINGS);
  take(loaded.composite);
  loaded.changed.connect(() => take(loaded.composite));
}

/**
 * Have the settings editor show our settings in the user's language.
 *
 * JupyterLab translates schemas on the server, with the words of language packs alone.
 */
export function speak(settings: ISettingRegistry | null, trans: TranslationBundle): void {
  settings?.transform(SETTINGS, {
    fetch: plugin => ({ ...plugin, schema: spoken(plugin.schema, trans) })
  });
}

/** A schema whose titles and descriptions are translated, and those of its properties. */
export function spoken<Schema extends ISpoken>(
  schema: Schema,
  trans: Pick<TranslationBundle, 'gettext'>
): Schema {
  const { title, description, properties } = schema;
  return {
    ...schema,
    ...(title ? { title: trans.gettext(title) } : {}),
    ...(description ? { description: trans.gettext(description) } : {}),
    ...(properties
      ? {
          properties: Object.fromEntries(
            Object.entries(properties).map(([name, one]) => [name, spoken(one, trans)])
          )
        }
      : {})
  };
}

interface ISpoken {
  title?: string;
  description?: string;
  properties?: Record<string, ISpoken>;
}
