package monitor

import (
	"math"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// latency counts how long probes took in the current hour, in buckets that grow by
// a sixth of an octave: percentiles are right within some 6%.
type latency struct {
	hour    int64 // since 1970
	count   int
	most    time.Duration
	buckets [latencyBuckets]uint16
}

const (
	latencyBuckets = 96 // from 1 ms to a minute
	latencySteps   = 6  // of an octave
)

// add counts a probe and returns the hour before, where that has ended.
func (l *latency) add(at time.Time, took time.Duration, name string) (done store.NamedLatency, ok bool) {
	hour := at.Unix() / 3600
	if l.count > 0 && hour != l.hour {
		done, ok = l.flush(name)
	}
	l.hour = hour
	l.count++
	l.most = max(l.most, took)
	i := int(math.Log2(max(1, float64(took)/float64(time.Millisecond))) * latencySteps)
	if b := &l.buckets[min(i, latencyBuckets-1)]; *b < math.MaxUint16 {
		*b++
	}
	return done, ok
}

// flush returns what was counted and begins anew.
func (l *latency) flush(name string) (store.NamedLatency, bool) {
	if l.count == 0 {
		return store.NamedLatency{}, false
	}
	out := store.NamedLatency{Name: name, LatencyHour: store.LatencyHour{
		Hour: time.Unix(l.hour*3600, 0).UTC(), Count: l.count, P50: l.quantile(0.50), P95: l.quantile(0.95), Max: l.most,
	}}
	*l = latency{}
	return out, true
}

// quantile returns the middle of the bucket that holds it.
func (l *latency) quantile(q float64) time.Duration {
	rank, seen := int(math.Ceil(q*float64(l.count))), 0
	for i, n := range l.buckets {
		if seen += int(n); seen >= rank {
			return min(l.most, time.Duration(math.Exp2((float64(i)+0.5)/latencySteps)*float64(time.Millisecond)))
		}
	}
	return l.most
}
