/** Numbers and times as people read them. */

const BYTES = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];

/** In which units memory and temperature are told. */
export interface IUnits {
  memoryUnit: 'binary' | 'decimal';
  temperatureUnit: 'celsius' | 'fahrenheit';
}

let kilo = 1024;
let fahrenheit = false;

/** Tell memory and temperature in other units from now on. */
export function setUnits(units: IUnits): void {
  kilo = units.memoryUnit === 'decimal' ? 1000 : 1024;
  fahrenheit = units.temperatureUnit === 'fahrenheit';
}

/** "12 GB": three significant digits at most, powers of 1024 unless told otherwise. */
export function bytes(count: number): string {
  let power = 0;
  let value = Math.max(0, count);
  while (value >= kilo - 0.5 && power < BYTES.length - 1) {
    value /= kilo;
    power++;
  }
  const digits = power > 0 && value < 9.95 ? 1 : 0;
  return `${trimZeros(value.toFixed(digits))} ${BYTES[power]}`;
}

/** "3.1 / 16 GB": how much of a whole is used, in the unit of the whole. */
export function bytesOf(used: number, whole: number): string {
  const total = bytes(whole);
  const unit = total.split(' ')[1] ?? 'B';
  const value = used / kilo ** BYTES.indexOf(unit);
  return `${trimZeros(value.toFixed(value < 9.95 ? 1 : 0))} / ${total}`;
}

/** "67 °C", or in Fahrenheit where the user wants that. */
export function temperature(celsius: number): string {
  return fahrenheit
    ? `${Math.round(celsius * 1.8 + 32)} °F`
    : `${Math.round(celsius)} °C`;
}

/** "0:42", "12:05", "3:07:00", "2 d 03 h": a duration in seconds; never negative. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const [s, m, h] = [whole % 60, Math.floor(whole / 60) % 60, Math.floor(whole / 3600)];
  if (h >= 48) {
    return `${Math.floor(h / 24)} d ${two(h % 24)} h`;
  }
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** "22:00" on this day, "Mar 1, 08:30" on another: a point in time by the local clock. */
export function clock(time: number, now = new Date()): string {
  const then = new Date(time * 1000);
  const of: Intl.DateTimeFormatOptions =
    then.toDateString() === now.toDateString() ? {} : { month: 'short', day: 'numeric' };
  return then.toLocaleString('en', {
    ...of,
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23'
  });
}

/** A metric's value: four significant digits, and "10,020" for large ones. */
export function metric(value: number): string {
  if (!Number.isFinite(value)) {
    return Number.isNaN(value) ? 'NaN' : value > 0 ? '∞' : '−∞';
  }
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
    return value.toExponential(2);
  }
  if (Number.isInteger(value) || size >= 1000) {
    return grouped(value.toFixed(0));
  }
  return trimZeros(value.toPrecision(4));
}

/** "samples_per_second" as "samples/s", "val_loss" as "val loss". */
export function metricName(name: string): string {
  return name.replace(/_per_second$/, '/s').replace(/_/g, ' ');
}

/** A part of a whole in percent, 0 to 100; null when the whole is not known. */
export function percent(part: number, whole: number): number | null {
  return whole > 0 ? Math.min(100, Math.max(0, (100 * part) / whole)) : null;
}

/** A count of done units: whole numbers as they are, others with one digit. */
export function count(value: number): string {
  return Number.isInteger(value) ? grouped(`${value}`) : value.toFixed(1);
}

/** Digits in groups of three where there are five or more: a year is no 2,026. */
function grouped(digits: string): string {
  return digits.length > 4 + Number(digits.startsWith('-'))
    ? digits.replace(/\B(?=(\d{3})+$)/g, ',')
    : digits;
}

function trimZeros(text: string): string {
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

function two(value: number): string {
  return `${value}`.padStart(2, '0');
}
