package replay

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Passed reports whether nothing that was allowed would be refused.
func (r *Result) Passed() bool { return len(r.Refused) == 0 && len(r.Problems) == 0 }

// WriteJSON writes the result as one JSON object.
func (r *Result) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Summary is the result in one line.
func (r *Result) Summary() string {
	return fmt.Sprintf("%s judged, %s: %s would be refused, %s newly allowed, %s unclear",
		count(r.Edges, "edge"), count(int(r.Connections), "connection"), flows(r.Refused), flows(r.Allowed), flows(r.Unclear))
}

func flows(list []Flip) string {
	if len(list) == 0 {
		return "nothing"
	}
	return count(len(list), "flow")
}

func count(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}

const day = "2006-01-02 15:04"

// WriteText writes the result for people, with times of a location.
func (r *Result) WriteText(w io.Writer, location *time.Location) error {
	for _, p := range r.Problems {
		fmt.Fprintln(w, "invalid:", p)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, part := range r.parts() {
		if len(part.flips) == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\tSOURCE\tDESTINATION\tPORT\tCONNECTIONS\tFIRST SEEN\tLAST SEEN\tWHY\n", part.title)
		for i := range part.flips {
			f := &part.flips[i]
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Happened, f.Source, f.Destination, f.portText(), f.countText(),
				f.First.In(location).Format(day), f.Last.In(location).Format(day), f.Why)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	_, err := fmt.Fprintln(w, r.Summary())
	return err
}

// WriteMarkdown writes the result for a pull request.
func (r *Result) WriteMarkdown(w io.Writer, location *time.Location) error {
	verdict := "✅ Nothing that was allowed would be refused"
	if !r.Passed() {
		verdict = "❌ Recorded traffic would be refused"
		if len(r.Refused) == 0 {
			verdict = "❌ The change is not valid"
		}
	}
	fmt.Fprintf(w, "### %s\n\n%s, from %s until %s", verdict, r.Summary(), r.Since.In(location).Format(day), r.Until.In(location).Format(day))
	if r.Blind > 0 {
		fmt.Fprintf(w, "; %s of the time was not watched", Percent(r.Blind))
	}
	fmt.Fprint(w, ".\n")
	for _, p := range r.Problems {
		fmt.Fprintf(w, "\n- invalid: %s\n", escape(p.String()))
	}
	for _, part := range r.parts() {
		if len(part.flips) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n#### %s\n\n| source | destination | port | what happened | connections | first seen | last seen | why |\n|---|---|---|---|---|---|---|---|\n", part.heading)
		for i := range part.flips {
			f := &part.flips[i]
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", escape(f.Source), escape(f.Destination), f.portText(), f.Happened, f.countText(),
				f.First.In(location).Format(day), f.Last.In(location).Format(day), escape(f.Why))
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\n> %s\n", escape(n))
	}
	return nil
}

type part struct {
	title, heading string
	flips          []Flip
}

func (r *Result) parts() []part {
	return []part{
		{"WOULD BE REFUSED", "Would be refused", r.Refused},
		{"NEWLY ALLOWED", "Newly allowed", r.Allowed},
		{"UNCLEAR", "Unclear", r.Unclear},
	}
}

// Line is the flip in one line, as it is watched.
func (f *Flip) Line(location *time.Location) string {
	outcome := map[string]string{"denied": "WOULD BE REFUSED", "allowed": "NEWLY ALLOWED"}[f.After]
	if outcome == "" {
		outcome = "UNCLEAR"
	}
	return fmt.Sprintf("%s  %-16s  %s -> %s  %s  %s: %s", f.First.In(location).Format("Jan _2 15:04:05"), outcome, f.Source, f.Destination, f.portText(), f.Happened, f.Why)
}

func (f *Flip) portText() string {
	if f.Port == 0 {
		return f.Protocol
	}
	return fmt.Sprintf("%d/%s", f.Port, f.Protocol)
}

func (f *Flip) countText() string {
	text := strconv.FormatUint(f.Connections, 10)
	if f.InPart {
		return "at most " + text
	}
	return text
}

// Percent is a share from 0 to 1 as people read it, rounded up: what is not
// zero must not look so.
func Percent(share float64) string {
	tenths := int(share * 1000)
	if float64(tenths) < share*1000 {
		tenths++
	}
	return fmt.Sprintf("%d.%d %%", tenths/10, tenths%10)
}

func escape(s string) string { return strings.ReplaceAll(s, "|", "\\|") }
