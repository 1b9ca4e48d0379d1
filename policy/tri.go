package policy

// tri is a truth value of three: what is not known must end in unknown, and
// only where it could change the answer.
type tri uint8

// In this order "and" is the smaller and "or" the greater.
const (
	no tri = iota
	maybe
	yes
)

func isTrue(b bool) tri {
	if b {
		return yes
	}
	return no
}

// answer is a truth value and, of maybe, the first reason why it is not known.
type answer struct {
	is  tri
	why Reason
}

func doubt(why Reason) answer { return answer{maybe, why} }

func (a answer) and(b answer) answer {
	if a.is == b.is {
		return answer{a.is, first(a.why, b.why)}
	}
	if b.is < a.is {
		return b
	}
	return a
}

func (a answer) or(b answer) answer {
	if a.is == b.is {
		return answer{a.is, first(a.why, b.why)}
	}
	if b.is > a.is {
		return b
	}
	return a
}

// first is the reason that is listed first, of those that are given.
func first(a, b Reason) Reason {
	if a == ReasonNone || b != ReasonNone && b < a {
		return b
	}
	return a
}
