// Package alert evaluates rules over flows, edges and coverage, and keeps track of what fires.
package alert
