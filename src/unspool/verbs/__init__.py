"""What each verb plans and does.

A verb is a function from options to a `Plan`; its work is one pure function per video or picture. Settings
come together here: command line over config file over preset over default, and nothing else.
"""
