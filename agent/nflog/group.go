package nflog

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/flow"
)

// Meaning says what a record of a group tells.
type Meaning uint8

// The meanings.
const (
	MeaningDenied  Meaning = iota // every record is a refusal
	MeaningAllowed                // every record is a permission
	MeaningPrefix                 // the record's prefix tells
	// MeaningKubeRouter: no prefix is a refusal. k3s' policy controller also
	// logs the name of each policy that did not match: a hint, no verdict.
	MeaningKubeRouter
	MeaningCalico  // the prefix is Felix's
	MeaningAttempt // a packet of a connection that is not confirmed yet: our own tap's
)

// Prefixes of the tap's records. The empty one is a packet's first, before NAT,
// in conntrack's zone 0.
const (
	AttemptInZone    = "zone"      // in another zone
	AttemptAfterNAT  = "nat"       // its destination was translated
	AttemptInZoneNAT = "zone nat"  // both
	AttemptUntracked = "untracked" // it bypasses connection tracking
)

// meaningNames are those that a user can give.
var meaningNames = [...]string{"denied", "allowed", "prefix", "kube-router", "calico"}

// Group is an NFLOG group and what its records mean.
type Group struct {
	Number  uint16
	Meaning Meaning
}

// String gives the form that ParseGroup reads.
func (g Group) String() string {
	if int(g.Meaning) >= len(meaningNames) {
		return strconv.Itoa(int(g.Number))
	}
	return fmt.Sprintf("%d=%s", g.Number, meaningNames[g.Meaning])
}

// ParseGroup reads NUMBER or NUMBER=MEANING, where MEANING is denied (the
// default), allowed, prefix, kube-router or calico.
func ParseGroup(s string) (Group, error) {
	number, meaning, given := strings.Cut(s, "=")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return Group{}, fmt.Errorf("parse NFLOG group %q: want a number up to 65535, such as 100 or 100=denied", s)
	}
	g := Group{Number: uint16(n)}
	if !given {
		return g, nil
	}
	for i, name := range meaningNames {
		if meaning == name {
			g.Meaning = Meaning(i)
			return g, nil
		}
	}
	return Group{}, fmt.Errorf("parse NFLOG group %q: meaning %q: want %s", s, meaning, strings.Join(meaningNames[:], ", "))
}

// grammars are compiled once a source: what a prefix says is looked up again
// only when it is new.
type grammars struct {
	calico           calico.Grammar
	deny, allow, k3s *regexp.Regexp
}

func newGrammars() grammars {
	return grammars{
		calico: calico.NewGrammar(),
		deny:   regexp.MustCompile(`(?i)(^|[^a-z])(deny|denied|drop|dropped|reject|rejected|refused|block|blocked)([^a-z]|$)`),
		allow:  regexp.MustCompile(`(?i)(^|[^a-z])(allow|allowed|accept|accepted|pass|passed|permit|permitted)([^a-z]|$)`),
		k3s:    regexp.MustCompile(`^DROP by policy ([^/]+)/(.+)$`),
	}
}

// k3sHint begins the prefix that k3s' policy controller logs for every policy
// that did not match, also when a later one allows the packet.
const k3sHint = "DROP by policy "

// verdict tells what a prefix says. Empty is a denial (kube-router, and k3s'
// record that decides); unknown is a hint, or says nothing.
func (g grammars) verdict(prefix string) flow.Verdict {
	if prefix == "" {
		return flow.VerdictDenied
	}
	if strings.HasPrefix(prefix, k3sHint) {
		return flow.VerdictUnknown
	}
	if p, ok := g.calico.Parse(prefix); ok {
		return p.Verdict
	}
	switch deny, allow := g.deny.MatchString(prefix), g.allow.MatchString(prefix); {
	case deny && !allow:
		return flow.VerdictDenied
	case allow && !deny:
		return flow.VerdictAllowed
	}
	return flow.VerdictUnknown
}
