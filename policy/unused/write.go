package unused

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report for people, with times of a location.
func (r *Report) WriteText(w io.Writer, location *time.Location) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(r.Rules) > 0 {
		fmt.Fprintln(t, "KIND\tNAMESPACE\tNAME\tFIELD\tSAYS\tLAST USED\tCAVEATS")
	}
	for _, u := range r.Rules {
		last := "never seen"
		if !u.LastUsed.IsZero() {
			last = u.LastUsed.In(location).Format("2006-01-02 15:04")
		}
		caveats := u.Caveats
		if u.Attempts > 0 {
			caveats = append([]string{fmt.Sprintf("%d attempts that nobody answered", u.Attempts)}, caveats...)
		}
		text := "-"
		if len(caveats) > 0 {
			text = strings.Join(caveats, "; ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.Kind, u.Namespace, u.Policy, u.Field, u.Text, last, text)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	_, err := fmt.Fprintf(w, "%d of %d rules, peers and ports of %d policies had no traffic for %s\n", len(r.Rules), r.Parts, r.Policies, days(r.For))
	return err
}
