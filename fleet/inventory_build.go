package fleet

import (
	"fmt"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// addInstance takes in one entry of instances. What its shape could not have is
// absent by now; the fault is noted.
func (l *loader) addInstance(d, defaults datum, file string) {
	i := Instance{
		Name: d.get(keyName).text, Pin: d.get(keyPin).text, Cloud: d.get(keyCloud).text,
		ConfigHash: d.get(keyConfigHash).text, Labels: map[string]string{}, Source: d.at,
	}
	either := func(key string) datum {
		if own := d.get(key); own.set {
			return own
		}
		return defaults.get(key)
	}
	if i.Pin == "" {
		if i.Channel = either(keyChannel).text; i.Channel == "" {
			i.Channel = string(release.Stable)
		}
	}
	if address := d.get(keyURL); address.set {
		if u, err := api.ParseURL(address.text); err == nil { // as the shape has checked
			i.URL = u.String()
		}
	}
	for key, value := range d.get(keyLabels).members {
		i.Labels[key] = value.text
	}
	l.once(l.names, d.get(keyName), i.Name, "each name once in the fleet", i.Name)
	l.setHost(&i, d.get(keyHost))
	l.setTimes(&i, either(keyInterval), either(keyTimeout), d)
	i.MaxDataAge = durationOf(either(keyMaxDataAge), 0)
	l.setTLS(&i, d.get(keyTLS), defaults.get(keyTLS), file)
	if token := d.get(keyToken); token.set {
		i.Token = l.secret(token, i.Name, file, "token: ")
	}
	l.found.Instances = append(l.found.Instances, i)
}

// once notes a value that another entry has already.
func (l *loader) once(seen map[string]Position, d datum, value, expected, shown string) {
	if !d.set {
		return
	}
	if before, twice := seen[value]; twice {
		l.faults.add(d.at, fmt.Sprintf("expected %s, found %s again", expected, shown), "The other one is at "+before.String()+".")
		return
	}
	seen[value] = d.at
}

func (l *loader) setHost(i *Instance, d datum) {
	target, err := deploy.ParseTarget(d.text)
	if !d.set || err != nil { // as the shape has checked
		return
	}
	i.Host = target.String()
	// Two instances in one folder would undo each other's deploys.
	l.once(l.hosts, d, target.Address()+target.Dir, "each host and folder once in the fleet", i.Host)
}

func (l *loader) setTimes(i *Instance, interval, timeout, entry datum) {
	i.Interval, i.Timeout = durationOf(interval, DefaultInterval), durationOf(timeout, DefaultTimeout)
	if i.Timeout <= i.Interval {
		return
	}
	if !timeout.set { // an interval below the default is no mistake
		i.Timeout = i.Interval
		return
	}
	l.faults.add(timeout.at, fmt.Sprintf("expected a timeout no longer than the interval of %s, %s, found %s", i.Name, i.Interval, i.Timeout),
		"The instance is at "+entry.at.String()+": raise its interval or shorten the timeout.")
}

func durationOf(d datum, or time.Duration) time.Duration {
	if parsed, err := time.ParseDuration(d.text); d.set && err == nil {
		return parsed
	}
	return or
}

// setTLS takes each key from the instance, else from the file's defaults; an empty
// one of the instance undoes a default.
func (l *loader) setTLS(i *Instance, own, defaults datum, file string) {
	either := func(key string) datum {
		if d := own.get(key); d.set {
			return d
		}
		return defaults.get(key)
	}
	i.TLS.ServerName = either(keyServerName).text
	if ca := either(keyCA); ca.text != "" {
		i.TLS.CAFile, i.TLS.PEM = l.certificates(ca, file)
	}
}

// addWaves takes the waves in and sees to it that they take everybody.
func (l *loader) addWaves(d datum) {
	if !d.set {
		l.found.Waves = DefaultWaves()
		return
	}
	seen := map[string]Position{}
	for n, one := range d.list {
		if !one.set {
			continue
		}
		w := l.wave(one)
		l.once(seen, one.get(keyName), w.Name, "each wave's name once", w.Name)
		if w.takesAll() && n < len(d.list)-1 && !one.broken {
			l.faults.add(one.at, fmt.Sprintf("expected match or percent for the wave %s, found neither: it takes everybody, and the waves after it nobody", w.Name), "Move it to the end.")
		}
		l.found.Waves = append(l.found.Waves, w)
	}
	if len(l.faults.list) > 0 {
		return // an instance that has no wave may follow from them
	}
	if _, err := l.found.Assign(l.found.Waves); err != nil {
		l.faults.explained(d.at, "waves: ", err)
	}
}

func (l *loader) wave(d datum) Wave {
	w := Wave{
		Name: d.get(keyName).text, Percent: d.get(keyPercent).number, Soak: durationOf(d.get(keySoak), 0), Source: d.at,
	}
	w.Match = matchOf(d.get(keyMatch))
	w.MaxUnavailable = limitOf(d.get(keyMaxUnavailable))
	return w
}

func limitOf(d datum) (l Limit) {
	if d.isText {
		_, _ = fmt.Sscanf(d.text, "%d%%", &l.Percent) // as the shape has checked
	} else {
		l.Count = d.number
	}
	return l
}

func (l *loader) addRollout(d datum) {
	p := RolloutPolicy{
		Desired: DefaultDesired, MaxUnreachable: Limit{Percent: DefaultMaxUnreachable},
		ArriveWithin: durationOf(d.get(keyArriveWithin), DefaultArriveWithin), ErrorBudget: DefaultErrorBudget,
	}
	if dir := d.get(keyDesired); dir.set {
		p.Desired = dir.text
	}
	if limit := d.get(keyMaxUnreachable); limit.set {
		p.MaxUnreachable = limitOf(limit)
	}
	if budget := d.get(keyErrorBudget); budget.set {
		p.ErrorBudget = budget.number
	}
	l.found.Rollout = p
}
