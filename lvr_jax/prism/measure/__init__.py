"""What an audit records: items, states, teacher-forced passes, sensitivity, corruptions, geometry."""
