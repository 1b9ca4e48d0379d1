package suggest

import (
	"fmt"
	"io"
	"strconv"

	"github.com/flowaudit/flowaudit/policy/replay"
)

// Proven reports whether the suggestion refuses nothing that it was made from,
// and permits nothing that nobody can account for.
func (r *Result) Proven() bool {
	return len(r.Proof.Refused) == 0 && r.Proof.Loose.Unexplained == 0
}

// WriteSummary writes for people what there is to know before the suggestion
// is applied.
func (r *Result) WriteSummary(w io.Writer) error {
	s := &summary{w: w}
	s.line("%s suggested, %s to be deleted", count(len(r.Policies), "policy", "policies"), count(len(r.Delete), "policy", "policies"))
	for _, n := range r.Notices {
		s.line("note: %s", n)
	}
	s.aside(r.SetAside)
	if len(r.Unused) > 0 {
		s.line("never used, and left out:")
		s.list(len(r.Unused), func(i int) string {
			u := r.Unused[i]
			return fmt.Sprintf("%s/%s %s (%s)", u.Namespace, u.Policy, u.Field, u.Text)
		})
	}
	s.readiness(r)
	s.proof(&r.Proof)
	return s.err
}

type summary struct {
	w   io.Writer
	err error
}

func (s *summary) line(format string, args ...any) {
	if s.err == nil {
		_, s.err = fmt.Fprintf(s.w, format+"\n", args...)
	}
}

// list shows the first of many.
func (s *summary) list(n int, text func(int) string) {
	const shown = 10
	for i := range min(n, shown) {
		s.line("  %s", text(i))
	}
	if n > shown {
		s.line("  and %d more (-o json has them)", n-shown)
	}
}

// aside lists what was not learnt, but for what nobody would expect to be.
func (s *summary) aside(all []SetAside) {
	texts := map[Reason]string{
		Unenforced:   "passed although policies deny it",
		RefusedNow:   "is refused by the present policies",
		Scan:         "looks like a scan (--accept-scan SOURCE learns from it)",
		Rejected:     "was rejected",
		UnknownEnd:   "has an end that is not known",
		Untranslated: "went to a Service's address that nothing translated",
		GoneWith:     "is of a namespace that is gone",
		NoSelector:   "has an end that no labels tell",
		OldLabels:    "had labels that its end has no more; it is learnt for the new ones",
	}
	counts := make(map[Reason]int)
	for begin := 0; begin < len(all); {
		end := begin
		for end < len(all) && all[end].Reason == all[begin].Reason {
			end++
		}
		reason, part := all[begin].Reason, all[begin:end]
		begin = end
		counts[reason] = len(part)
		if texts[reason] == "" {
			continue
		}
		s.line("set aside, because it %s:", texts[reason])
		s.list(len(part), func(i int) string {
			return fmt.Sprintf("%s -> %s %d/%s, %s", part[i].Source, part[i].Destination, part[i].Port, part[i].Protocol, count(int(part[i].Connections), "connection", "connections"))
		})
	}
	if n := counts[OwnNode]; n > 0 {
		s.line("%s by pods' own nodes, such as probes, and of pods with themselves: always allowed, they need no rule", count(n, "flow", "flows"))
	}
	if n := counts[NotAllowed]; n > 0 {
		s.line("%s denied or never answered: nothing is learnt from them", count(n, "flow", "flows"))
	}
	if n := counts[OtherTraffic]; n > 0 {
		s.line("%s of protocols that NetworkPolicy does not know, such as ICMP: it cannot be said what becomes of them", count(n, "flow", "flows"))
	}
}

func (s *summary) readiness(r *Result) {
	if r.Ready {
		s.line("READY: every workload was watched long enough")
		return
	}
	s.line("NOT READY:")
	var open []Readiness
	for _, x := range r.Readiness {
		if !x.Ready {
			open = append(open, x)
		}
	}
	if len(open) == 0 {
		s.line("  nothing is suggested")
	}
	s.list(len(open), func(i int) string {
		text := open[i].Workload + ":"
		for n, reason := range open[i].Reasons {
			if n > 0 {
				text += ";"
			}
			text += " " + reason
		}
		return text
	})
}

func (s *summary) proof(p *Proof) {
	s.line("proof: %s, %s: %d that were learnt would be refused, %d set aside would be, %d denied would be allowed, %d unclear", count(p.Edges, "edge", "edges"),
		count(int(p.Connections), "connection", "connections"), len(p.Refused), len(p.Decided), len(p.Allowed), len(p.Unclear))
	show := func(title string, flips []replay.Flip) {
		if len(flips) == 0 {
			return
		}
		s.line("%s:", title)
		s.list(len(flips), func(i int) string {
			f := flips[i]
			return fmt.Sprintf("%s -> %s %d/%s: %s", f.Source, f.Destination, f.Port, f.Protocol, f.Why)
		})
	}
	show("WOULD BE REFUSED though it was learnt, do not apply", p.Refused)
	decided := make([]replay.Flip, len(p.Decided))
	for i, d := range p.Decided {
		decided[i] = d.Flip
		decided[i].Why = string(d.Reason)
	}
	show("would be refused, as decided", decided)
	show("was denied and would be allowed", p.Allowed)
	show("unclear", p.Unclear)
	s.line("tightness: %d ports between workloads are permitted and were never seen, %d of them unaccounted for", p.Loose.Pairs, p.Loose.Unexplained)
	s.list(len(p.Loose.List), func(i int) string {
		l := p.Loose.List[i]
		ports := strconv.Itoa(int(l.FirstPort))
		if l.LastPort > l.FirstPort {
			ports += "–" + strconv.Itoa(int(l.LastPort))
		}
		why := l.Why
		if why == "" {
			why = "unaccounted for"
		}
		return fmt.Sprintf("%s -> %s %s/%s (%s)", l.Source, l.Destination, ports, l.Protocol, why)
	})
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
