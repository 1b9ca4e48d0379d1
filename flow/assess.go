package flow

// Assess compares what happened with what the policies say. It knows no
// circumstances: where an allowed flow that policies deny is excused, the
// caller says so.
func Assess(happened, expected Verdict) Assessment {
	switch {
	case expected != VerdictAllowed && expected != VerdictDenied:
		return AssessmentUnknown
	case happened == VerdictAllowed && expected == VerdictAllowed:
		return AssessmentAllowed
	case happened == VerdictAllowed:
		return AssessmentUnenforced
	case happened == VerdictDenied && expected == VerdictDenied:
		return AssessmentEnforced
	case happened == VerdictDenied:
		return AssessmentUnexplained
	case happened == VerdictUnanswered && expected == VerdictDenied:
		return AssessmentEnforced // inferred: nothing else explains the silence better
	case happened == VerdictUnanswered:
		return AssessmentUnanswered
	}
	return AssessmentUnknown
}
