// Percentiles out of cumulative histograms: lists of [upper bound or null, count at most that].

// What was counted between two readings of the same histogram.
export function sinceThen(then, now) {
  const before = new Map(then.map(([bound, count]) => [bound, count]));
  return now.map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]);
}

// The value below which `part` (0 to 1) of what was counted lies, as if each bucket were filled evenly; null if
// nothing was counted. In the last bucket, which has no end, it is that bucket's beginning.
export function percentile(buckets, part) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const wanted = part * total;
  let low = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= wanted && count > below) {
      if (bound === null) return low;
      return low + ((wanted - below) / (count - below)) * (bound - low);
    }
    below = count;
    if (bound !== null) low = bound;
  }
  return low;
}
