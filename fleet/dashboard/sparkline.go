package dashboard

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/store"
)

// sparkline is a small drawing of the latency of a week: the median as a line, and
// the 95th percentile as an area behind it. Hours without a probe are gaps.
type sparkline struct {
	Line, Area template.HTMLAttr // paths
	Top        time.Duration     // of the scale
	Median     time.Duration     // of the last hour
	P95        time.Duration
	Hours      int
	Days       []sparkDay
}

type sparkDay struct {
	X    string
	Name string
}

const (
	sparkWidth, sparkHeight = 1200.0, 96.0
	sparkGap                = 3 * time.Hour
)

func newSparkline(hours []store.LatencyHour, from, to time.Time) sparkline {
	s := sparkline{Hours: len(hours)}
	if len(hours) == 0 {
		return s
	}
	for _, h := range hours {
		s.Top = max(s.Top, h.P95, h.P50)
	}
	s.Top = max(s.Top+s.Top/8, time.Millisecond)
	last := hours[len(hours)-1]
	s.Median, s.P95 = last.P50, last.P95
	x := func(at time.Time) float64 {
		return max(0, min(1, float64(at.Sub(from))/float64(to.Sub(from)))) * sparkWidth
	}
	y := func(d time.Duration) float64 { return sparkHeight * (1 - float64(d)/float64(s.Top)) }
	var line, area strings.Builder
	for start := 0; start < len(hours); {
		end := start + 1
		for end < len(hours) && hours[end].Hour.Sub(hours[end-1].Hour) <= sparkGap {
			end++
		}
		part := hours[start:end]
		fmt.Fprintf(&area, "M%.1f %.1f", x(part[0].Hour), sparkHeight)
		for i, h := range part {
			verb := "L"
			if i == 0 {
				verb = "M"
			}
			fmt.Fprintf(&line, "%s%.1f %.1f", verb, x(h.Hour), y(h.P50))
			fmt.Fprintf(&area, "L%.1f %.1f", x(h.Hour), y(h.P95))
		}
		// A lone hour is a dash, or nothing would be drawn.
		if len(part) == 1 {
			fmt.Fprintf(&line, "h4")
			fmt.Fprintf(&area, "h4")
			fmt.Fprintf(&area, "L%.1f %.1fZ", x(part[0].Hour)+4, sparkHeight)
		} else {
			fmt.Fprintf(&area, "L%.1f %.1fZ", x(part[len(part)-1].Hour), sparkHeight)
		}
		start = end
	}
	s.Line = template.HTMLAttr(`d="` + line.String() + `"`) //nolint:gosec // numbers alone
	s.Area = template.HTMLAttr(`d="` + area.String() + `"`) //nolint:gosec // numbers alone
	for d := from.Truncate(24 * time.Hour).Add(24 * time.Hour); d.Before(to); d = d.Add(24 * time.Hour) {
		s.Days = append(s.Days, sparkDay{fmt.Sprintf("%.1f", x(d)), d.Format("Mon 2")})
	}
	return s
}
