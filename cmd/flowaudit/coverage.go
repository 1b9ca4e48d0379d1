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
	span := c.Until.Sub(c.Since)
	if len(c.Nodes) == 0 {
		fmt.Fprintln(w, "coverage: no node reported in this time: an empty answer says nothing")
		return
	}
	var blind, lines []string
	var covered time.Duration
	for _, n := range c.Nodes {
		covered += n.Covered
		if span > slackOf(span) && n.Covered < span-slackOf(span) {
			blind = append(blind, fmt.Sprintf("%s %s", n.Node, percent(n.Covered, span)))
		}
		for _, g := range n.Gaps {
			lines = append(lines, gapText(g, location))
		}
		for _, l := range n.Limits {
			lines = append(lines, fmt.Sprintf("%s: %s", n.Node, l))
		}
	}
	line := fmt.Sprintf("coverage: %d %s", len(c.Nodes), plural(uint64(len(c.Nodes)), "node"))
	switch {
	case span <= 0:
	case len(blind) == 0:
		line += fmt.Sprintf(", %s, complete", short(span))
	default:
		line += fmt.Sprintf(", %s of %s: %s", percent(covered, span*time.Duration(len(c.Nodes))), short(span), strings.Join(blind, ", "))
	}
	fmt.Fprintln(w, line)
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

func gapText(g flow.Gap, location *time.Location) string {
	from, to := g.Start.In(location).Format("15:04:05"), g.End.In(location).Format("15:04:05")
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
	case d >= time.Minute:
		return strings.TrimSuffix(strings.TrimSuffix(d.Round(time.Minute).String(), "0s"), "h0m")
	}
	return d.Round(time.Second).String()
}
