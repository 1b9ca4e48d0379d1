package nflog

import (
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/flow"
)

// prefix is what is known about a log prefix.
type prefix struct {
	text    string
	verdict flow.Verdict
	told    *flow.Told // the policy and the side that it names; nil if none
	again   int64      // when to look for its policy again, Unix nanoseconds; 0 if that is known
}

// againAfter is how long a policy may take to become known after its rules
// have logged a packet.
const againAfter = int64(10 * time.Second)

// learn reads a prefix that is new, or whose policy was not known yet.
func (d *decoder) learn(text string, now int64) prefix {
	p := prefix{text: text, verdict: d.verdict(text)}
	told, known := d.told(text)
	p.told = told
	if !known && d.policies != nil {
		p.again = now + againAfter
	}
	_, before := d.prefixes[text]
	if before || len(d.prefixes) < maxPrefixes {
		d.prefixes[text] = p
	}
	return p
}

// verdict tells what a prefix says in this group.
func (d *decoder) verdict(text string) flow.Verdict {
	switch d.group.Meaning {
	case MeaningKubeRouter:
		if text != "" {
			return flow.VerdictUnknown
		}
	case MeaningCalico:
		p, _ := d.grammars.calico.Parse(text)
		return p.Verdict
	}
	return d.grammars.verdict(text)
}

// told reads the policy that a prefix names. known is false if its name was
// cut and no policy fits.
func (d *decoder) told(text string) (told *flow.Told, known bool) {
	if m := d.grammars.k3s.FindStringSubmatch(text); m != nil {
		ref, known := d.uncut(flow.PolicyRef{Kind: calico.KindKubernetes, Namespace: m[1], Name: m[2]})
		return &flow.Told{Policies: []flow.PolicyRef{ref}}, known
	}
	p, ok := d.grammars.calico.Parse(text)
	if !ok || d.group.Meaning == MeaningKubeRouter {
		return nil, true
	}
	told = &flow.Told{Direction: p.Side}
	if p.Policy.Name == "" || p.Verdict == flow.VerdictUnknown {
		return told, true // what passed a packet on did not decide
	}
	if known = !p.Hashed; p.Hashed && d.policies != nil {
		var found flow.PolicyRef
		if found, known = calico.Resolve(text, d.policies()); known {
			p.Policy.Kind, p.Policy.Namespace, p.Policy.Name = found.Kind, found.Namespace, found.Name
		}
	}
	told.Policies = []flow.PolicyRef{p.Policy}
	return told, known
}

// k3sWhole is the length up to which k3s leaves names whole: of namespace and
// name together, a longer pair is cut to 46 or 47 characters.
const k3sWhole = 46

// uncut finds the policy whose names begin as these do, if they were cut and
// there is one.
func (d *decoder) uncut(p flow.PolicyRef) (ref flow.PolicyRef, known bool) {
	if len(p.Namespace)+len(p.Name) < k3sWhole || d.policies == nil {
		return p, true
	}
	for _, k := range d.policies() {
		if k.Kind != p.Kind || !strings.HasPrefix(k.Namespace, p.Namespace) || !strings.HasPrefix(k.Name, p.Name) {
			continue
		}
		if known {
			return p, true // several fit
		}
		ref, known = k, true
	}
	if !known {
		return p, false
	}
	return ref, true
}
