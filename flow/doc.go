// Package flow holds the words of flowaudit: observations, flows, endpoints, verdicts and coverage.
package flow
