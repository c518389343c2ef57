"""Small pure-ASGI layers around the application, outermost first.

RequestId     names the request
Farewell      ends its connection, once the server shuts down
AccessLog     counts, times and logs it
Failures      answers what nobody else answered
Version       says which weights the server serves
LocalNames    keeps web pages of strangers out of a server that only this machine may reach
BodyLimit     reads no more than it must
"""
