import {
  bytes,
  bytesOf,
  clock,
  count,
  duration,
  metric,
  metricName,
  percent
} from '../src/format';

const GB = 1024 ** 3;

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1 kB'],
  [1536, '1.5 kB'],
  [80 * GB, '80 GB'],
  [1023.9 * GB, '1 TB'],
  [-5, '0 B']
])('%d bytes read "%s"', (count, text) => {
  expect(bytes(count)).toBe(text);
});

test.each([
  [0, 80 * GB, '0 / 80 GB'],
  [3.14 * GB, 80 * GB, '3.1 / 80 GB'],
  [31.4 * GB, 80 * GB, '31 / 80 GB'],
  [512 * 1024 ** 2, 16 * GB, '0.5 / 16 GB']
])('%d of %d bytes read "%s"', (used, whole, text) => {
  expect(bytesOf(used, whole)).toBe(text);
});

test.each([
  [0, '0:00'],
  [59.9, '0:59'],
  [725, '12:05'],
  [3600, '1:00:00'],
  [47 * 3600 + 61, '47:01:01'],
  [51 * 3600, '2 d 03 h'],
  [-3, '0:00']
])('%d seconds read "%s"', (seconds, text) => {
  expect(duration(seconds)).toBe(text);
});

test.each([
  [0, '0'],
  [42, '42'],
  [0.41274, '0.4127'],
  [0.5, '0.5'],
  [27.5312, '27.53'],
  [1234.5, '1235'],
  [2026, '2026'],
  [-9999, '-9999'],
  [9999.5, '10,000'],
  [12345.67, '12,346'],
  [-1234567, '-1,234,567'],
  [0.00001234, '1.23e-5'],
  [1.5e9, '1.50e+9'],
  [-0.25, '-0.25'],
  [NaN, 'NaN'],
  [Infinity, '∞'],
  [-Infinity, '−∞']
])('the metric %d reads "%s"', (value, text) => {
  expect(metric(value)).toBe(text);
});

test.each([
  ['steps_per_second', 'steps/s'],
  ['val_loss', 'val loss'],
  ['loss', 'loss']
])('the metric named %s is shown as "%s"', (name, text) => {
  expect(metricName(name)).toBe(text);
});

test('units that are done are counted like numbers', () => {
  expect([count(120), count(60000), count(0.5)]).toEqual(['120', '60,000', '0.5']);
});

test('a part of an unknown whole has no percentage, others stay within 0 and 100', () => {
  expect(percent(3, 0)).toBeNull();
  expect(percent(1, 4)).toBe(25);
  expect(percent(9, 4)).toBe(100);
  expect(percent(-1, 4)).toBe(0);
});

test('a time on this day is a clock, on another it has its date', () => {
  const at = new Date(2026, 2, 1, 8, 5);
  expect(clock(at.getTime() / 1000, at)).toBe('08:05');
  expect(clock(at.getTime() / 1000, new Date(2026, 2, 2))).toBe('Mar 1, 08:05');
});
