import { spoken } from '../src/preferences';

describe('the settings', () => {
  it('are told in the user’s language, and are the same settings', () => {
    const items = { enum: ['queue'] };
    const schema = {
      title: 'AIOS',
      description: 'The sidebar.',
      'jupyter.lab.transform': true,
      properties: {
        hidden: { title: 'Hidden', items },
        unit: { title: 'Unit', default: 'binary', enum: ['binary', 'decimal'] }
      }
    };
    const said = spoken(schema, { gettext: text => `<${text}>` });
    expect(said).toEqual({
      ...schema,
      title: '<AIOS>',
      description: '<The sidebar.>',
      properties: {
        hidden: { title: '<Hidden>', items },
        unit: { title: '<Unit>', default: 'binary', enum: ['binary', 'decimal'] }
      }
    });
  });
});
