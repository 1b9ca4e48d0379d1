package policy

import (
	"encoding/binary"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// selector is a label selector: all its requirements must hold. The zero
// selector selects everything.
type selector struct {
	requirements []requirement // sorted
	// invalid says that a part of it cannot be understood: it perhaps selects.
	invalid bool
}

type requirement struct {
	key    string
	op     metav1.LabelSelectorOperator
	values []string // sorted
}

// newSelector compiles a selector that was found valid, or not. matchLabels is
// another way to write In with one value.
func newSelector(from *metav1.LabelSelector, valid bool) *selector {
	s := &selector{invalid: !valid}
	if n := len(from.MatchLabels) + len(from.MatchExpressions); n > 0 {
		s.requirements = make([]requirement, 0, n)
	}
	for _, k := range slices.Sorted(maps.Keys(from.MatchLabels)) {
		s.requirements = append(s.requirements, requirement{k, metav1.LabelSelectorOpIn, []string{from.MatchLabels[k]}})
	}
	for _, e := range from.MatchExpressions {
		s.requirements = append(s.requirements, requirement{e.Key, e.Operator, slices.Compact(slices.Sorted(slices.Values(e.Values)))})
	}
	slices.SortStableFunc(s.requirements, compareRequirements)
	return s
}

func compareRequirements(a, b requirement) int {
	switch {
	case a.key != b.key:
		return order(a.key, b.key)
	case a.op != b.op:
		return order(a.op, b.op)
	}
	return slices.Compare(a.values, b.values)
}

func order[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// match reports whether the selector selects what has the labels.
func (s *selector) match(labels map[string]string) answer {
	if s.invalid {
		return doubt(ReasonInvalid)
	}
	for i := range s.requirements {
		if !s.requirements[i].holds(labels) {
			return answer{}
		}
	}
	return answer{is: yes}
}

// matchNamespace is match for a class's namespace, of which perhaps only the
// name is known.
func (s *selector) matchNamespace(c *Class) answer {
	if s.invalid || c.namespaceKnown {
		return s.match(c.namespaceLabels)
	}
	all := answer{is: yes}
	for i := range s.requirements {
		switch r := &s.requirements[i]; {
		case r.key != metadataName:
			all = all.and(doubt(ReasonNamespace))
		case !r.holds(c.namespaceLabels):
			return answer{}
		}
	}
	return all
}

func (r *requirement) holds(labels map[string]string) bool {
	value, has := labels[r.key]
	switch r.op {
	case metav1.LabelSelectorOpIn:
		return has && slices.Contains(r.values, value)
	case metav1.LabelSelectorOpNotIn:
		return !has || !slices.Contains(r.values, value)
	case metav1.LabelSelectorOpExists:
		return has
	case metav1.LabelSelectorOpDoesNotExist:
		return !has
	}
	return false // not reached: such a selector is invalid
}

// appendKey appends what is equal for equal selectors only.
func (s *selector) appendKey(b []byte) []byte {
	b = append(b, byte(isTrue(s.invalid)))
	b = binary.AppendUvarint(b, uint64(len(s.requirements)))
	for i := range s.requirements {
		r := &s.requirements[i]
		b = appendString(appendString(b, r.key), string(r.op))
		b = binary.AppendUvarint(b, uint64(len(r.values)))
		for _, v := range r.values {
			b = appendString(b, v)
		}
	}
	return b
}

// appendString appends a string and its length, so that no two lists of
// strings give the same bytes.
func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
