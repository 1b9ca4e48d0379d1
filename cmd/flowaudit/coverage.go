package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// writeCoverage says what an answer stands on, in one line where all is well.
func writeCoverage(w io.Writer, c flow.Coverage, location *time.Location) {
	if len(c.Nodes) == 0 {
		fmt.Fprintln(w, "coverage: no node reported in this time: an empty answer says nothing")
		return
	}
	span := c.Until.Sub(c.Since)
	var blind []string
	var covered time.Duration
	gaps := 0
	for _, n := range c.Nodes {
		covered += n.Covered
		gaps += len(n.Gaps)
		if span > slackOf(span) && n.Covered < span-slackOf(span) {
			blind = append(blind, fmt.Sprintf("%s %s", n.Node, percent(n.Covered, span)))
		}
	}
	line := fmt.Sprintf("coverage: %d %s", len(c.Nodes), plural(uint64(len(c.Nodes)), "node"))
	switch {
	case span <= 0:
		line += ", and nothing is stored of this time"
	case len(blind) > 0:
		line += fmt.Sprintf(", %s of %s: %s", percent(covered, span*time.Duration(len(c.Nodes))), short(span), strings.Join(blind, ", "))
	case gaps > 0:
		line += fmt.Sprintf(", %s, all the time, but with %d %s", short(span), gaps, plural(uint64(gaps), "gap"))
	default:
		line += fmt.Sprintf(", %s, complete", short(span))
	}
	fmt.Fprintln(w, line)
	writeGaps(w, c, location)
}

// writeGaps says what nodes could not see, one line each.
func writeGaps(w io.Writer, c flow.Coverage, location *time.Location) {
	var lines []string
	for _, n := range c.Nodes {
		for _, g := range n.Gaps {
			lines = append(lines, gapText(g, c.Until.In(location)))
		}
		for _, l := range n.Limits {
			lines = append(lines, fmt.Sprintf("%s: %s", n.Node, l))
		}
	}
	const shown = 10
	for i, l := range lines {
		if i == shown {
			fmt.Fprintf(w, "  and %d more (flowaudit query coverage-gaps)\n", len(lines)-shown)
			break
		}
		fmt.Fprintln(w, "  "+l)
	}
}

// slackOf is what may be missing of a range whose end is now: the window that
// is still open.
func slackOf(span time.Duration) time.Duration {
	return max(span/100, 21*time.Second)
}

// gapText shows a gap with its date, if that is not today's.
func gapText(g flow.Gap, today time.Time) string {
	clock := func(t time.Time) string {
		if t = t.In(today.Location()); t.Format(time.DateOnly) != today.Format(time.DateOnly) {
			return t.Format("Jan _2 15:04:05")
		}
		return t.Format("15:04:05")
	}
	from, to := clock(g.Start), clock(g.End)
	when := from
	if to != from {
		when += "–" + to
	}
	text := fmt.Sprintf("%s blind %s (%s", g.Node, when, g.Kind)
	if g.Source != "" {
		text += " of " + g.Source
	}
	if g.Lost > 0 {
		text += fmt.Sprintf(", at least %d lost", g.Lost)
	}
	text += ")"
	if g.Detail != "" {
		text += ": " + g.Detail
	}
	return text
}

func percent(part, whole time.Duration) string {
	if whole <= 0 {
		return "0 %"
	}
	// Rounded down: what is not complete must not look so.
	tenths := int64(part) * 1000 / int64(whole)
	return fmt.Sprintf("%d.%d %%", tenths/10, tenths%10)
}

// short rounds a duration to what people read.
func short(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	case d >= time.Hour:
		d = d.Round(time.Minute)
		if m := int(d.Minutes()) % 60; m > 0 {
			return fmt.Sprintf("%dh%dm", int(d.Hours()), m)
		}
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d >= time.Minute:
		return fmt.Sprintf("%dm", int(d.Round(time.Minute).Minutes()))
	}
	return d.Round(time.Second).String()
}
